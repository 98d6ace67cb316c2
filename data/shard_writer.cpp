#include <algorithm>
#include <bit>
#include <span>
#include <utility>

#include "data/hdf5_file.h"
#include "data/output_file.h"
#include "data/shard.h"
#include "data/shard_layout.h"
#include "dist/durable_file.h"
#include "dist/error.h"

namespace lorashard {
namespace {

using shard_layout::Index;

void append(const std::string& text, std::vector<uint8_t>* blob, std::vector<uint64_t>* offsets) {
  blob->insert(blob->end(), text.begin(), text.end());
  offsets->push_back(blob->size());
}

bool has_extras(const ShardSample& sample) {
  return !sample.more_captions.empty() || !sample.mask_bytes.empty() || sample.weight != 1 || sample.repeats != 1;
}

shard_layout::Extras make_extras(const std::vector<ShardSample>& samples) {
  shard_layout::Extras extras;
  extras.mask_offsets = {0};
  for (const ShardSample& sample : samples) {
    LORASHARD_CHECK(sample.repeats >= 1, "sample '{}' has {} repeats", sample.file_name, sample.repeats);
    extras.caption_counts.push_back(1 + sample.more_captions.size());
    extras.repeats.push_back(static_cast<uint64_t>(sample.repeats));
    extras.weights.push_back(std::bit_cast<uint64_t>(sample.weight));
    extras.mask_offsets.push_back(extras.mask_offsets.back() + sample.mask_bytes.size());
    extras.mask_checksums.push_back(shard_layout::checksum(sample.mask_bytes.data(), sample.mask_bytes.size()));
  }
  return extras;
}

Index make_index(const std::vector<ShardSample>& samples) {
  Index index;
  index.image_offsets = index.caption_offsets = index.file_name_offsets = {0};
  for (const ShardSample& sample : samples) {
    LORASHARD_CHECK(!sample.image_bytes.empty(), "sample '{}' has no picture", sample.file_name);
    index.image_offsets.push_back(index.image_offsets.back() + sample.image_bytes.size());
    index.image_checksums.push_back(shard_layout::checksum(sample.image_bytes.data(), sample.image_bytes.size()));
    index.image_sizes.push_back(static_cast<uint64_t>(sample.size.height));
    index.image_sizes.push_back(static_cast<uint64_t>(sample.size.width));
    append(sample.caption, &index.captions, &index.caption_offsets);
    for (const std::string& caption : sample.more_captions) append(caption, &index.captions, &index.caption_offsets);
    append(sample.file_name, &index.file_names, &index.file_name_offsets);
  }
  index.captions.push_back(0);  // HDF5 has no chunk for an empty dataset
  index.file_names.push_back(0);
  if (std::any_of(samples.begin(), samples.end(), has_extras)) index.extras = make_extras(samples);
  return index;
}

/// Where the encoded pictures go, and the masks where there are any.
struct Room {
  FileExtent images, masks;
};

/// The HDF5 file with everything but the bytes of pictures and masks, for which it leaves room.
Room write_index(const std::filesystem::path& path, const Index& index, uint64_t index_checksum) {
  Hdf5Writer file(path);
  file.write_attribute("format", shard_layout::kFormat);
  file.write_attribute("version", index.extras ? shard_layout::kVersionWithExtras : shard_layout::kVersion);
  file.write_attribute("index_checksum", index_checksum);
  file.write_dataset("image_offsets", index.image_offsets);
  file.write_dataset("image_checksums", index.image_checksums);
  file.write_dataset("image_sizes", index.image_sizes);
  file.write_dataset("caption_offsets", index.caption_offsets);
  file.write_dataset("captions", index.captions);
  file.write_dataset("file_name_offsets", index.file_name_offsets);
  file.write_dataset("file_names", index.file_names);
  Room room;
  room.images = file.reserve_dataset("images", index.image_offsets.back());
  if (index.extras) {
    file.write_dataset("caption_counts", index.extras->caption_counts);
    file.write_dataset("repeats", index.extras->repeats);
    file.write_dataset("weights", index.extras->weights);
    file.write_dataset("mask_offsets", index.extras->mask_offsets);
    file.write_dataset("mask_checksums", index.extras->mask_checksums);
    room.masks = file.reserve_dataset("masks", index.extras->mask_offsets.back() + 1);  // never empty
  }
  file.close();
  return room;
}

}  // namespace

uint64_t write_shard(const std::filesystem::path& path, const std::vector<ShardSample>& samples) {
  LORASHARD_CHECK(!samples.empty(), "a shard without samples: '{}'", path.string());
  const Index index = make_index(samples);
  const uint64_t index_checksum = shard_layout::index_checksum(index);
  write_durably(path, [&](const std::filesystem::path& temporary) {
    // The pictures go past HDF5, which would only tell a full disk from a broken file by its prose.
    const Room room = write_index(temporary, index, index_checksum);
    OutputFile file(temporary);
    for (size_t i = 0; i < samples.size(); ++i) {
      file.write_at(samples[i].image_bytes, room.images.offset + index.image_offsets[i]);
      if (index.extras) file.write_at(samples[i].mask_bytes, room.masks.offset + index.extras->mask_offsets[i]);
    }
    constexpr uint8_t kZero[1] = {0};
    if (index.extras) file.write_at(kZero, room.masks.offset + index.extras->mask_offsets.back());
    file.close();
  });
  return index_checksum;
}

}  // namespace lorashard
