// What the fuzzers share: seeded changes of bytes, and the memory a reader takes.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <string>
#include <string_view>

namespace lorashard {

/// `normal`, or `long_count` where LORASHARD_LONG_TESTS=1.
inline int fuzz_count(int normal, int long_count) {
  const char* value = std::getenv("LORASHARD_LONG_TESTS");
  return value != nullptr && std::string_view(value) == "1" ? long_count : normal;
}

/// Without fsync: a fuzzer writes thousands of files.
inline void write_quickly(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

/// `bytes` with one bit the other way round, anywhere from `begin` on.
inline std::string with_flipped_bit(std::string bytes, std::mt19937_64& random, size_t begin = 0) {
  const size_t at = begin + random() % (bytes.size() - begin);
  bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
  return bytes;
}

/// `text` after one to three changes: a byte replaced, a bit flipped, a piece removed, repeated, moved over another, or one of `tokens`
/// put in or over it.
inline std::string mutated(std::string text, std::span<const std::string> tokens, std::mt19937_64& random) {
  for (uint64_t changes = 1 + random() % 3; changes > 0; --changes) {
    const size_t at = text.empty() ? 0 : random() % text.size();
    const std::string& token = tokens[random() % tokens.size()];
    switch (text.empty() ? 2 : random() % 6) {
      case 0:
        text[at] = static_cast<char>(random());
        break;
      case 1:
        text[at] = static_cast<char>(text[at] ^ (1 << random() % 8));
        break;
      case 2:
        text.insert(at, token);
        break;
      case 3:
        text.erase(at, 1 + random() % 20);
        break;
      case 4:
        text.insert(at, text.substr(random() % text.size(), 1 + random() % 40));
        break;
      default:
        text.replace(at, 1 + random() % 6, token);
    }
  }
  return text;
}

/// Sets the high-water mark of the process's memory back to what it has now, and gives that, in MB.
int64_t start_watching_memory();
/// The high-water mark since then, in MB.
int64_t most_memory();

}  // namespace lorashard
