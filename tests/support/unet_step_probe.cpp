// unet_step_probe [threads] [steps] [batch]: times forward + backward of a tiny UNet with LoRA, random weights. Prints
// median and least milliseconds a step, and a checksum of the gradient.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <vector>

#include "models/lora.h"
#include "models/unet_2d_condition.h"

using namespace lorashard;

int main(int argc, char** argv) {
  const auto argument = [&](int i, int fallback) { return argc > i ? std::atoi(argv[i]) : fallback; };
  const int steps = argument(2, 50), batch = argument(3, 4);
  at::set_num_threads(argument(1, 1));
  at::manual_seed(0);

  UNet2DConditionConfig config;
  config.sample_size = 8;
  config.block_out_channels = {32, 64, 128, 128};
  config.cross_attention_dim = 64;
  config.norm_num_groups = 8;
  UNet2DConditionModel unet(config);
  for (at::Tensor& parameter : unet.parameters())
    parameter.dim() > 1 ? parameter.normal_(0, 0.03) : parameter.fill_(0.1);

  LoraAdapter adapter;
  adapter.add("unet", unet, LoraOptions{});
  adapter.allocate(1);
  adapter.flat_parameters().normal_(0, 0.1);

  const at::Tensor sample = at::randn({batch, 4, 8, 8}), text = at::randn({batch, 77, 64});
  const at::Tensor timesteps = at::randint(1000, {batch}, at::kLong), target = at::randn({batch, 4, 8, 8});
  std::vector<double> ms;
  for (int i = 0; i < steps; ++i) {
    adapter.flat_gradients().zero_();
    const auto start = std::chrono::steady_clock::now();
    const at::Tensor loss = at::mse_loss(unet.forward(sample, timesteps, text), target);
    loss.backward();
    ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(ms.begin(), ms.end());
  fmt::print("threads {} median {:.2f} ms least {:.2f} ms, gradient norm {:.9g}\n", at::get_num_threads(),
             ms[ms.size() / 2], ms.front(), adapter.flat_gradients().norm().item<double>());
}
