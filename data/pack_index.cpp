#include "data/pack_index.h"

#include <nlohmann/json.hpp>

#include "dist/error.h"

namespace lorashard {
namespace {

constexpr char kFormat[] = "lorashard-pack";
constexpr int64_t kVersion = 1;  // persisted: raise it with every change of the format

[[noreturn]] void broken(const std::filesystem::path& path, const std::string& what) {
  throw Error(ErrorKind::bad_data, fmt::format("reading '{}': {}", path.string(), what),
              "pack the images again with `lorashard pack`");
}

/// A count out of the index: a whole number that isn't negative.
int64_t count_of(const nlohmann::json& object, const char* key, const std::filesystem::path& path) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number_integer() || found->get<int64_t>() < 0)
    broken(path, fmt::format("'{}': expected a count", key));
  return found->get<int64_t>();
}

std::string text_of(const nlohmann::json& object, const char* key, const std::filesystem::path& path) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) broken(path, fmt::format("'{}': expected a text", key));
  return found->get<std::string>();
}

}  // namespace

std::string shard_file_name(int64_t position) { return fmt::format("shard-{:05}.h5", position); }

std::string to_json(const PackIndex& index) {
  nlohmann::ordered_json shards = nlohmann::ordered_json::array();
  for (const PackShard& shard : index.shards)
    shards.push_back({{"file", shard.file},
                      {"num_samples", shard.num_samples},
                      {"image_bytes", shard.image_bytes},
                      {"file_bytes", shard.file_bytes},
                      {"sha256", shard.sha256},
                      {"index_checksum", shard.index_checksum}});
  const nlohmann::ordered_json json = {{"format", kFormat},
                                       {"version", kVersion},
                                       {"num_samples", index.num_samples},
                                       {"num_captions", index.num_captions},
                                       {"image_bytes", index.image_bytes},
                                       {"source", {{"kind", index.kind}, {"captions", index.captions}}},
                                       {"shards", shards}};
  return json.dump(2) + "\n";
}

PackIndex parse_pack_index(const std::string& text, const std::filesystem::path& path) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || json.value("format", nlohmann::json()) != kFormat)
    broken(path, fmt::format("expected a JSON object with \"format\": \"{}\"", kFormat));
  const int64_t version = count_of(json, "version", path);
  if (version != kVersion) broken(path, fmt::format("'version': expected {}, found {}", kVersion, version));
  PackIndex index;
  index.num_samples = count_of(json, "num_samples", path);
  index.num_captions = count_of(json, "num_captions", path);
  index.image_bytes = static_cast<uint64_t>(count_of(json, "image_bytes", path));
  if (!json.contains("source") || !json["source"].is_object()) broken(path, "'source': expected an object");
  index.captions = text_of(json["source"], "captions", path);
  if (!json.contains("shards") || !json["shards"].is_array()) broken(path, "'shards': expected an array");
  int64_t num_samples = 0;
  uint64_t image_bytes = 0;
  for (const nlohmann::json& entry : json["shards"]) {
    if (!entry.is_object()) broken(path, "'shards': expected objects");
    PackShard shard = {text_of(entry, "file", path), count_of(entry, "num_samples", path),
                       static_cast<uint64_t>(count_of(entry, "image_bytes", path)),
                       static_cast<uint64_t>(count_of(entry, "file_bytes", path)), text_of(entry, "sha256", path),
                       entry.contains("index_checksum") ? text_of(entry, "index_checksum", path) : ""};
    const std::string expected = shard_file_name(static_cast<int64_t>(index.shards.size()));
    if (shard.file != expected) broken(path, fmt::format("expected the shard '{}', found '{}'", expected, shard.file));
    num_samples += shard.num_samples;
    image_bytes += shard.image_bytes;
    index.shards.push_back(std::move(shard));
  }
  if (num_samples != index.num_samples || image_bytes != index.image_bytes || num_samples == 0 ||
      index.num_captions > num_samples)
    broken(path,
           fmt::format("its counts don't add up: {} samples, its shards have {}", index.num_samples, num_samples));
  return index;
}

}  // namespace lorashard
