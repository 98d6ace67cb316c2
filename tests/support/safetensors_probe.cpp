// Oracle's probe of models/safetensors: `check CORPUS` reads files laid end to end (u64 length, bytes) and prints "1"
// or "0" for each, accepted or not; `rewrite IN OUT` reads a file and writes its tensors and metadata again.
#include <cstring>
#include <iostream>
#include <string>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "models/safetensors.h"
#include "models/safetensors_header.h"

namespace lorashard {
namespace {

bool is_accepted(std::string_view file) {
  try {
    parse_safetensors_header(file, "corpus");
    return true;
  } catch (const Error&) {
    return false;
  }
}

void check(const std::string& corpus_path) {
  const std::string corpus = read_file(corpus_path);
  std::string_view rest = corpus;
  std::string answers;
  while (!rest.empty()) {
    uint64_t length = 0;
    std::memcpy(&length, rest.data(), sizeof length);
    answers += is_accepted(rest.substr(8, length)) ? '1' : '0';
    rest.remove_prefix(8 + length);
  }
  std::cout << answers << '\n';
}

void rewrite(const std::string& in, const std::string& out) {
  const SafetensorsFile file(in);
  write_safetensors(out, file.tensors(), file.metadata());
}

}  // namespace
}  // namespace lorashard

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  try {
    if (what == "check" && argc == 3) {
      lorashard::check(argv[2]);
    } else if (what == "rewrite" && argc == 4) {
      lorashard::rewrite(argv[2], argv[3]);
    } else {
      std::cerr << "usage: safetensors_probe check CORPUS | rewrite IN OUT\n";
      return 2;
    }
  } catch (const lorashard::Error& error) {
    std::cerr << error.what() << '\n';
    return lorashard::exit_code(error.kind());
  }
}
