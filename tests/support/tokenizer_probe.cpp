// Tokenizes for the oracle. Argument: a tokenizer folder. Stdin: texts, each a uint32 of its bytes and the bytes;
// stdout: for each text a uint32 of its ids and the ids as uint32. With "--padded" the ids are those of operator().
#include <ATen/ATen.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "models/clip_tokenizer.h"

namespace {

void write(const std::vector<int64_t>& ids) {
  std::vector<uint32_t> words = {uint32_t(ids.size())};
  words.insert(words.end(), ids.begin(), ids.end());
  std::fwrite(words.data(), sizeof(uint32_t), words.size(), stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const bool padded = argc > 2 && std::string(argv[2]) == "--padded";
  try {
    const lorashard::CLIPTokenizer tokenizer(argv[1]);
    uint32_t size = 0;
    while (std::fread(&size, sizeof size, 1, stdin) == 1) {
      std::string text(size, '\0');
      if (std::fread(text.data(), 1, size, stdin) != size) return 1;
      if (padded) {
        const at::Tensor row = tokenizer({text})[0];
        write(std::vector<int64_t>(row.const_data_ptr<int64_t>(), row.const_data_ptr<int64_t>() + row.numel()));
      } else {
        write(tokenizer.encode(text));
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
