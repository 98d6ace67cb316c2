// TensorBoard event files: TFRecords (masked CRC32C) of Event protos (trainer/event.proto, a subset of TensorFlow's).
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace lorashard {

/// Each call writes one whole record. All throw Error(io). Not thread-safe.
class EventFile {
 public:
  /// Creates events.out.tfevents.<time>.<host> in `folder`, which is made when it isn't there.
  explicit EventFile(const std::filesystem::path& folder);
  ~EventFile();
  /// The run goes on at `step`: TensorBoard drops what earlier files of the folder hold from there on.
  void restart(int64_t step);
  void scalar(const std::string& tag, int64_t step, double value);
  void image(const std::string& tag, int64_t step, int64_t height, int64_t width, const std::string& png);
  void text(const std::string& tag, int64_t step, const std::string& value);
  void flush();
  const std::filesystem::path& path() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lorashard
