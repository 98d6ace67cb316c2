// TensorBoard event files: TFRecords (masked CRC32C) of Event protos (trainer/event.proto, a subset of TensorFlow's).
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace lorashard {

class EventFile {
 public:
  /// Creates events.out.tfevents.<time>.<host> in `folder`. Throws Error(io).
  explicit EventFile(const std::filesystem::path& folder);
  ~EventFile();
  void scalar(const std::string& tag, int64_t step, double value);
  void image(const std::string& tag, int64_t step, int64_t height, int64_t width, const std::string& png);
  void text(const std::string& tag, int64_t step, const std::string& value);
  void flush();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lorashard
