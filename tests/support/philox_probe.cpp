// philox_probe IN.safetensors OUT.safetensors: the random numbers that IN asks for, for tests/oracle/test_philox.py.
//   counters [K, 5] (seed, slot, purpose, block, n)  ->  words [K, 4], uniform [K] and uniform_int [K] below n
//   normals [K, 4] (seed, slot, purpose, count)      ->  normals.0 ... normals.K-1
//   permutations [K, 4] (seed, epoch, n, class)      ->  permutations.0 ... permutations.K-1
#include <ATen/ATen.h>
#include <fmt/core.h>

#include <cstdio>
#include <exception>

#include "dist/permutation.h"
#include "dist/philox.h"
#include "models/safetensors.h"

namespace lorashard {
namespace {

void draw(const char* in, const char* out) {
  const SafetensorsFile asked(in);
  StateDict drawn;
  const at::Tensor counters = asked.tensor("counters"), normals = asked.tensor("normals"),
                   permutations = asked.tensor("permutations");
  const auto asks = counters.accessor<int64_t, 2>();
  at::Tensor words = at::empty({asks.size(0), 4}, at::kLong), uniforms = at::empty({asks.size(0)}, at::kDouble),
             integers = at::empty({asks.size(0)}, at::kLong);
  for (int64_t i = 0; i < asks.size(0); ++i) {
    const auto seed = static_cast<uint64_t>(asks[i][0]), slot = static_cast<uint64_t>(asks[i][1]);
    const auto purpose = static_cast<Purpose>(asks[i][2]);
    const auto block = philox(seed, slot, purpose, static_cast<uint32_t>(asks[i][3]));
    for (int64_t j = 0; j < 4; ++j) words[i][j] = static_cast<int64_t>(block[static_cast<size_t>(j)]);
    uniforms[i] = uniform(seed, slot, purpose);
    integers[i] = uniform_int(seed, slot, purpose, asks[i][4]);
  }
  drawn["words"] = words;
  drawn["uniform"] = uniforms;
  drawn["uniform_int"] = integers;
  const auto fills = normals.accessor<int64_t, 2>();
  for (int64_t i = 0; i < fills.size(0); ++i) {
    at::Tensor values = at::empty({fills[i][3]}, at::kFloat);
    fill_normal({values.mutable_data_ptr<float>(), static_cast<size_t>(fills[i][3])},
                static_cast<uint64_t>(fills[i][0]), static_cast<uint64_t>(fills[i][1]),
                static_cast<Purpose>(fills[i][2]));
    drawn[fmt::format("normals.{}", i)] = values;
  }
  const auto orders = permutations.accessor<int64_t, 2>();
  for (int64_t i = 0; i < orders.size(0); ++i) {
    const int64_t n = orders[i][2];
    const Permutation permutation(static_cast<uint64_t>(orders[i][0]), static_cast<uint64_t>(orders[i][1]), n,
                                  purpose_of(Purpose::permutation, orders[i][3] != 0));
    at::Tensor order = at::empty({n}, at::kLong);
    for (int64_t row = 0; row < n; ++row) order.mutable_data_ptr<int64_t>()[row] = permutation(row);
    drawn[fmt::format("permutations.{}", i)] = order;
  }
  write_safetensors(out, drawn);
}

}  // namespace
}  // namespace lorashard

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    lorashard::draw(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
