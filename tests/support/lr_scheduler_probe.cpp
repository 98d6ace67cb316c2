// Learning rates for the oracle. Stdin: lines "name base warmup_steps max_train_steps num_cycles power min_lr_ratio decay_steps updates";
// stdout: the rates of updates 0 .. updates - 1 as hexadecimal floats, one line each schedule.
#include <cstdio>
#include <iostream>
#include <string>

#include "trainer/lr_scheduler.h"

int main() {
  lorashard::LrSchedulerOptions options;
  std::string base, power, min_lr_ratio;
  int64_t updates = 0;
  while (std::cin >> options.name >> base >> options.warmup_steps >> options.max_train_steps >> options.num_cycles >>
         power >> min_lr_ratio >> options.decay_steps >> updates) {
    options.power = std::stod(power);
    options.min_lr_ratio = std::stod(min_lr_ratio);
    for (int64_t k = 0; k < updates; ++k) std::printf("%a ", lorashard::learning_rate(options, std::stod(base), k));
    std::printf("\n");
  }
}
