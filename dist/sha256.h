// SHA-256 of bytes and files, as 64 lower-case hex digits. Thread-safe.
#pragma once
#include <filesystem>
#include <string>
#include <string_view>

namespace lorashard {

std::string sha256(std::string_view bytes);
/// Throws Error(io) naming the file, or Error(usage) when it doesn't exist.
std::string sha256_file(const std::filesystem::path& path);

}  // namespace lorashard
