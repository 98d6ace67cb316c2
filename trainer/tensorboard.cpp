#include "trainer/tensorboard.h"

#include <event.pb.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <string_view>
#include <system_error>

#include "dist/durable_file.h"
#include "dist/error.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr std::array<uint32_t, 256> crc32c_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0x82F63B78u : 0u);
    table[byte] = crc;
  }
  return table;
}

/// CRC32C as TFRecords store it, rotated and shifted so that a CRC of data with CRCs inside stays sound.
uint32_t masked_crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> kTable = crc32c_table();
  uint32_t crc = 0xFFFFFFFFu;
  for (char c : bytes) crc = (crc >> 8) ^ kTable[(crc ^ static_cast<unsigned char>(c)) & 0xFF];
  crc = ~crc;
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

template <class T>
void append_little_endian(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out += char((value >> (8 * i)) & 0xFF);
}

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string host_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "localhost";
  return name.data();
}

}  // namespace

struct EventFile::Impl {
  explicit Impl(const fs::path& folder) {
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) throw Error(ErrorKind::io, fmt::format("making the folder '{}': {}", folder.string(), error.message()));
    const std::string name = fmt::format("events.out.tfevents.{:010d}.{}", int64_t(seconds_since_1970()), host_name());
    // A run that is started again within a second gets a name of its own, which sorts after the first.
    for (int again = 0; descriptor < 0; ++again) {
      path = folder / (again == 0 ? name : fmt::format("{}.{}", name, again));
      descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
      if (descriptor < 0 && errno != EEXIST && errno != EINTR)
        throw errno_error(fmt::format("creating '{}'", path.string()));
    }
  }
  ~Impl() {
    if (descriptor >= 0) ::close(descriptor);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void write(tensorboard::Event& event) {
    event.set_wall_time(seconds_since_1970());
    const std::string data = event.SerializeAsString();
    std::string record;
    record.reserve(data.size() + 16);
    append_little_endian(record, uint64_t(data.size()));
    append_little_endian(record, masked_crc32c(record));
    record += data;
    append_little_endian(record, masked_crc32c(data));
    append_whole(descriptor, record, path);
  }

  fs::path path;
  int descriptor = -1;
};

EventFile::EventFile(const fs::path& folder) : impl_(std::make_unique<Impl>(folder)) {
  tensorboard::Event event;
  event.set_file_version("brain.Event:2");
  impl_->write(event);
}

EventFile::~EventFile() = default;

void EventFile::restart(int64_t step) {
  tensorboard::Event event;
  event.set_step(step);
  event.mutable_session_log()->set_status(tensorboard::SessionLog::START);
  impl_->write(event);
}

void EventFile::scalar(const std::string& tag, int64_t step, double value) {
  tensorboard::Event event;
  event.set_step(step);
  auto* entry = event.mutable_summary()->add_value();
  entry->set_tag(tag);
  entry->set_simple_value(float(value));
  impl_->write(event);
}

void EventFile::image(const std::string& tag, int64_t step, int64_t height, int64_t width, const std::string& png) {
  tensorboard::Event event;
  event.set_step(step);
  auto* entry = event.mutable_summary()->add_value();
  entry->set_tag(tag);
  auto* image = entry->mutable_image();
  image->set_height(int32_t(height));
  image->set_width(int32_t(width));
  image->set_colorspace(3);
  image->set_encoded_image_string(png);
  impl_->write(event);
}

void EventFile::text(const std::string& tag, int64_t step, const std::string& value) {
  tensorboard::Event event;
  event.set_step(step);
  auto* entry = event.mutable_summary()->add_value();
  entry->set_tag(tag);
  entry->mutable_metadata()->mutable_plugin_data()->set_plugin_name("text");
  auto* tensor = entry->mutable_tensor();
  tensor->set_dtype(tensorboard::Tensor::DT_STRING);
  tensor->mutable_tensor_shape()->add_dim()->set_size(1);
  tensor->add_string_val(value);
  impl_->write(event);
}

void EventFile::flush() {
  if (::fdatasync(impl_->descriptor) != 0) throw errno_error(fmt::format("flushing '{}'", impl_->path.string()));
}

const fs::path& EventFile::path() const { return impl_->path; }

}  // namespace lorashard
