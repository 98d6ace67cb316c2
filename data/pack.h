// A pack: a folder of shards with index.json. pack_images() makes one, Pack reads one. Rows keep the source's order.
// docs/shard_format.md has both files field by field.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "data/image_folder.h"
#include "data/shard.h"

namespace lorashard {

enum class OnBadImage { stop, skip };

struct PackOptions {
  ImageFolderOptions folder = {};
  OnBadImage on_bad_image = OnBadImage::stop;
  bool alpha_masks = false;                  ///< the alpha channel of a picture is its mask, where it has no other
  int64_t shard_bytes = int64_t{256} << 20;  ///< a shard is closed when its pictures reach this many bytes
  int num_threads = 0;                       ///< 0: one per core. Changes nothing in the bytes written
  int64_t max_samples = 0;                   ///< 0: all
  bool overwrite = false;                    ///< replace a pack that is in the way; never anything else
};

struct PackReport {
  int64_t num_samples = 0, num_shards = 0, num_captions = 0;
  uint64_t bytes = 0;             ///< of the encoded pictures
  std::vector<LeftOut> left_out;  ///< by the listing, then the pictures skipped because they can't be decoded
  int64_t num_masks = 0, num_images_in_epoch = 0;  ///< the latter counts repeats
  int64_t num_skipped = 0;        ///< of them, those that can't be decoded
  CaptionSource caption_source = CaptionSource::none;
  int64_t num_other_files = 0, num_longer_caption_files = 0;  ///< as in ImageFolder
};

/// What pack_images() would pack of `source`, a folder of pictures or parquet files (data/parquet_source.h). Throws as
/// list_image_folder() and list_parquet() do.
ImageFolder list_pictures(const std::filesystem::path& source, const ImageFolderOptions& options);

/// Packs the pictures of `source` into `out` (made; must be empty or absent, or hold what an interrupted pack_images
/// left). Every picture is decoded once to prove it can be. index.json is written last, durably: a folder without it is
/// no pack. Progress goes to the log. Holds the pictures of one shard, still encoded, in memory, and one decoded
/// picture a thread. Throws Error(usage) for `out`, what list_pictures() throws, Error(bad_data) for the first
/// picture that can't be decoded when on_bad_image is stop, Error(io); then `out` is as it was before.
PackReport pack_images(const std::filesystem::path& source, const std::filesystem::path& out,
                       const PackOptions& options);

/// Says in the log what pack_images() did: the pictures left out by reason, and what is in the pack `out`.
void log_report(const PackReport& report, const std::filesystem::path& out);

/// True when `folder` holds an index.json of ours (so train knows a pack from an image folder).
bool is_pack(const std::filesystem::path& folder);

/// A pack opened for reading. Thread-safe after construction.
class Pack {
 public:
  /// Opens every shard and checks the index against it. Throws Error(usage) when there is no pack, Error(bad_data) when
  /// it is broken.
  explicit Pack(const std::filesystem::path& folder);

  int64_t num_samples() const { return num_samples_; }
  int64_t num_images_in_epoch() const { return num_images_in_epoch_; }  ///< rows by their repeats
  bool has_weights() const { return has_weights_; }                     ///< some row's weight isn't 1
  const std::string& caption(int64_t row) const;  ///< the first
  std::span<const std::string> captions(int64_t row) const;
  const std::string& file_name(int64_t row) const;
  ImageSize size(int64_t row) const;
  std::vector<uint8_t> read_image(int64_t row) const;
  std::vector<uint8_t> read_mask(int64_t row) const;  ///< still encoded; empty where the row has none
  double weight(int64_t row) const;                   ///< of the row's loss; 1 unless packed with another
  int64_t repeats(int64_t row) const;                 ///< how often an epoch has the row; 1 unless packed with another
  /// SHA-256 over index.json: with the hashes of every shard in it, the identity of the dataset.
  const std::string& hash() const { return hash_; }
  const std::filesystem::path& folder() const { return folder_; }
  /// Reads every byte and compares every hash (lorashard inspect --verify). Throws Error(bad_data).
  void verify() const;

 private:
  std::pair<const ShardReader*, int64_t> locate(int64_t row) const;

  std::filesystem::path folder_;
  std::vector<ShardReader> shards_;
  std::vector<int64_t> first_row_;  // of each shard, and num_samples at the end
  int64_t num_samples_ = 0, num_images_in_epoch_ = 0;
  bool has_weights_ = false;
  std::string hash_;
};

}  // namespace lorashard
