// Runs clip_gradient and AdamW for the oracle. Arguments: elements steps learning_rate beta1 beta2 weight_decay epsilon
// max_norm threads. Stdin: raw fp32 parameters, then a gradient for each step; stdout: raw fp32 parameters, exp_avg,
// exp_avg_sq after the last step, then the norms as raw fp64.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "trainer/optimizer.h"

namespace {

at::Tensor read_floats(int64_t count) {
  at::Tensor tensor = at::empty({count}, at::kFloat);
  if (std::fread(tensor.data_ptr<float>(), sizeof(float), count, stdin) != size_t(count)) std::exit(1);
  return tensor;
}

void write_floats(const at::Tensor& tensor) {
  std::fwrite(tensor.const_data_ptr<float>(), sizeof(float), tensor.numel(), stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 10) return 2;
  const int64_t elements = std::atoll(argv[1]), steps = std::atoll(argv[2]);
  const lorashard::AdamWOptions options{.beta1 = std::atof(argv[4]),
                                        .beta2 = std::atof(argv[5]),
                                        .weight_decay = std::atof(argv[6]),
                                        .epsilon = std::atof(argv[7])};
  at::set_num_threads(std::atoi(argv[9]));
  at::Tensor parameters = read_floats(elements);
  lorashard::AdamW optimizer(parameters, options);
  std::vector<double> norms;
  for (int64_t k = 0; k < steps; ++k) {
    at::Tensor gradient = read_floats(elements);
    norms.push_back(lorashard::clip_gradient(gradient, std::atof(argv[8])));
    optimizer.step(gradient, std::atof(argv[3]));
  }
  write_floats(parameters);
  write_floats(optimizer.exp_avg);
  write_floats(optimizer.exp_avg_sq);
  std::fwrite(norms.data(), sizeof(double), norms.size(), stdout);
}
