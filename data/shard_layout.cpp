#include "data/shard_layout.h"

#include <xxhash.h>

#include <bit>
#include <memory>

#include "dist/error.h"

namespace lorashard::shard_layout {

static_assert(std::endian::native == std::endian::little, "shards and their checksums are little-endian");

uint64_t index_checksum(const Index& index) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), XXH3_freeState);
  LORASHARD_CHECK(state != nullptr, "no memory for a checksum");
  XXH3_64bits_reset(state.get());
  const auto add = [&](const auto& values) {
    XXH3_64bits_update(state.get(), values.data(), values.size() * sizeof(values[0]));
  };
  add(index.image_offsets);
  add(index.image_checksums);
  add(index.image_sizes);
  add(index.caption_offsets);
  add(index.captions);
  add(index.file_name_offsets);
  add(index.file_names);
  if (index.extras) {
    add(index.extras->caption_counts);
    add(index.extras->repeats);
    add(index.extras->weights);
    add(index.extras->mask_offsets);
    add(index.extras->mask_checksums);
  }
  return XXH3_64bits_digest(state.get());
}

uint64_t checksum(const void* data, uint64_t bytes) { return XXH3_64bits(data, bytes); }

}  // namespace lorashard::shard_layout
