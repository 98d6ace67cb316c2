// checkpoint_probe RUN_DIR: writes a checkpoint of 1000 parameters, for tests/oracle/test_checkpoint_format.py.
#include <ATen/ATen.h>

#include <cstdio>
#include <exception>

#include "trainer/checkpoint.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    const at::Tensor x = at::arange(1000, at::kFloat);
    const lorashard::TrainingState state{.global_step = 500,
                                         .updates = 498,
                                         .skipped_in_a_row = 1,
                                         .parameters = x,
                                         .parts = {.tensors = {{"optimizer/exp_avg", x * 0.5},
                                                               {"optimizer/state1", x.remainder(256).to(at::kByte)}},
                                                   .scalars = {{"optimizer/d", 0.1},
                                                               {"loss_scale/good_steps", int64_t{1234567890123}}}},
                                         .recipe = "seed = 1337\n",
                                         .pack_hash = "9f86d081",
                                         .base_hash = "60303ae2",
                                         .arithmetic = "processor: A\nGPU: none\n",
                                         .program = "program: 1234\n",
                                         .parameter_keys = {"a.down 4x125", "a.up 125x4"}};
    lorashard::write_checkpoint(argv[1], state, {{"a.down", x.narrow(0, 0, 500).view({4, 125})}}, {});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
