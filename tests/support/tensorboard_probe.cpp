// Writes TensorBoard event files for the oracle. Arguments: a folder. Stdin: lines "scalar TAG STEP VALUE", "text TAG
// STEP WORD", "image TAG STEP HEIGHT WIDTH FILE" or "restart STEP", in one event file; prints its path.
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>

#include "dist/durable_file.h"
#include "trainer/tensorboard.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    lorashard::EventFile file(argv[1]);
    std::string kind, tag, value;
    int64_t step = 0, height = 0, width = 0;
    while (std::cin >> kind) {
      if (kind == "restart" && std::cin >> step) file.restart(step);
      if (kind == "scalar" && std::cin >> tag >> step >> value) file.scalar(tag, step, std::stod(value));
      if (kind == "text" && std::cin >> tag >> step >> value) file.text(tag, step, value);
      if (kind == "image" && std::cin >> tag >> step >> height >> width >> value) {
        file.image(tag, step, height, width, lorashard::read_file(value));
      }
    }
    file.flush();
    std::puts(file.path().c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
