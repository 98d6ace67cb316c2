#include "data/bucket_sampler.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <optional>

#include "data/data_loader.h"
#include "data/image_write.h"
#include "dist/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

using testing::HasSubstr;

/// Buckets with 7 images, one, and 4 of which row 20 comes twice.
std::vector<Bucket> some_buckets() {
  return {{{.height = 128, .width = 64}, {0, 1, 2, 3, 4, 5, 6}},
          {{.height = 64, .width = 64}, {10}},
          {{.height = 64, .width = 128}, {20, 20, 21, 22}}};
}

std::vector<int64_t> rows_of(const BucketSampler::MicroBatch& micro_batch) {
  std::vector<int64_t> rows;
  for (const Slot& slot : micro_batch.slots) rows.push_back(slot.row);
  return rows;
}

TEST(BucketSampler, AnEpochHasEveryImageAndRepeatsOnlyWhatFillsABucketUp) {
  const std::vector<Bucket> buckets = some_buckets();
  for (const int64_t batch : {1, 2, 3, 4, 5, 8}) {
    const BucketSampler sampler(11, batch, buckets);
    const int64_t per_epoch = micro_batches_per_epoch(buckets, batch);
    for (int64_t epoch = 0; epoch < 5; ++epoch) {
      std::map<int64_t, int64_t> times;          // of each row
      std::map<int64_t, int64_t> micro_batches;  // of each bucket, by its first row
      for (int64_t m = epoch * per_epoch; m < (epoch + 1) * per_epoch; ++m) {
        const BucketSampler::MicroBatch found = sampler.micro_batch(m);
        ASSERT_EQ(std::ssize(found.slots), batch);
        const auto bucket = std::ranges::find_if(buckets, [&](const Bucket& b) {
          return b.size.height == found.size.height && b.size.width == found.size.width;
        });
        ASSERT_NE(bucket, buckets.end());
        ++micro_batches[bucket->rows[0]];
        for (int64_t i = 0; i < batch; ++i) {
          const Slot& slot = found.slots[static_cast<size_t>(i)];
          ASSERT_EQ(slot.slot, static_cast<uint64_t>(m * batch + i));
          ASSERT_EQ(slot.epoch, epoch);
          ASSERT_TRUE(std::ranges::count(bucket->rows, slot.row) > 0) << "a row of another bucket";
          ++times[slot.row];
        }
      }
      for (const Bucket& bucket : buckets) {
        const auto count = std::ssize(bucket.rows), whole = (count + batch - 1) / batch;
        ASSERT_EQ(micro_batches[bucket.rows[0]], whole);
        int64_t all = 0;
        // Filling up repeats every image floor(filled / count) times, and some once more.
        const int64_t least = whole * batch / count, most = (whole * batch + count - 1) / count;
        for (int64_t i = 0; i < count; i += std::ranges::count(bucket.rows, bucket.rows[i])) {
          const int64_t repeats = std::ranges::count(bucket.rows, bucket.rows[i]);
          EXPECT_GE(times[bucket.rows[i]], repeats * least);
          EXPECT_LE(times[bucket.rows[i]], repeats * most);
          EXPECT_GE(least, 1);
          all += times[bucket.rows[i]];
        }
        ASSERT_EQ(all, whole * batch);
      }
    }
  }
}

std::vector<std::vector<int64_t>> epoch_of(uint64_t seed, int64_t epoch, const std::vector<Bucket>& buckets) {
  const BucketSampler sampler(seed, 2, buckets);
  const int64_t per_epoch = micro_batches_per_epoch(buckets, 2);
  std::vector<std::vector<int64_t>> micro_batches;
  for (int64_t m = epoch * per_epoch; m < (epoch + 1) * per_epoch; ++m)
    micro_batches.push_back(rows_of(sampler.micro_batch(m)));
  return micro_batches;
}

TEST(BucketSampler, TheOrderIsAFunctionOfSeedAndEpochAndMixesBuckets) {
  std::vector<Bucket> buckets = {{{.height = 64, .width = 128}, {}}, {{.height = 128, .width = 64}, {}}};
  for (int64_t row = 0; row < 40; ++row) buckets[static_cast<size_t>(row / 20)].rows.push_back(row);
  EXPECT_EQ(epoch_of(1, 2, buckets), epoch_of(1, 2, buckets));
  EXPECT_NE(epoch_of(1, 0, buckets), epoch_of(1, 1, buckets));
  EXPECT_NE(epoch_of(1, 0, buckets), epoch_of(2, 0, buckets));
  const auto epoch = epoch_of(1, 0, buckets);
  int64_t changes = 0;
  std::vector<int64_t> first, second;  // each bucket's images as its micro-batches come
  for (size_t i = 0; i < epoch.size(); ++i) {
    const bool of_first = epoch[i][0] < 20;
    if (i > 0) changes += of_first != (epoch[i - 1][0] < 20);
    for (const int64_t row : epoch[i]) (of_first ? first : second).push_back(of_first ? row : row - 20);
  }
  EXPECT_GT(changes, 3) << "the buckets come one after the other";
  EXPECT_NE(first, second) << "buckets of one size have one order";
  EXPECT_FALSE(std::ranges::is_sorted(first));
}

class BucketsOfAPack : public testing::Test {
 protected:
  /// Rows 0 to 6: three tall, three wide (the last with 3 repeats), one square.
  void SetUp() override {
    const ImageSize sizes[] = {{80, 26}, {90, 30}, {60, 20}, {26, 80}, {30, 90}, {20, 60}, {40, 40}};
    std::filesystem::create_directories(folder_ / "source");
    std::ofstream table(folder_ / "source/metadata.jsonl");
    for (int i = 0; const ImageSize& size : sizes) {
      const Image image{
          size.height, size.width,
          std::vector<uint8_t>(static_cast<size_t>(size.height * size.width * 3), static_cast<uint8_t>(9 * i))};
      const auto png = encode_png(image);
      const std::string name = fmt::format("{}.png", i);
      std::ofstream(folder_ / "source" / name, std::ios::binary)
          .write(reinterpret_cast<const char*>(png.data()), static_cast<std::streamsize>(png.size()));
      table << fmt::format("{{\"file_name\": \"{}\", \"text\": \"a picture\", \"times\": {}}}\n", name, i == 5 ? 3 : 1);
      ++i;
    }
    table.close();
    PackOptions options;
    options.folder.repeats_column = "times";
    pack_images(folder_ / "source", folder_ / "pack", options);
    pack_.emplace(folder_ / "pack");
  }

  TempDir folder_;
  std::optional<Pack> pack_;
  const BucketOptions options_{.resolution = 32, .min_bucket_reso = 16, .max_bucket_reso = 64, .bucket_reso_steps = 16};
};

TEST_F(BucketsOfAPack, HoldTheFirstImagesOfTheEpochByTheirRepeats) {
  const BucketManager manager(options_);
  const std::vector<Bucket> all = make_buckets(*pack_, manager, 9);
  EXPECT_EQ(describe(all), "16x48: 3, 32x32: 1, 48x16: 5");
  EXPECT_EQ(all[2].rows, (std::vector<int64_t>{3, 4, 5, 5, 5}));
  EXPECT_EQ(micro_batches_per_epoch(all, 2), 2 + 1 + 3);
  EXPECT_EQ(describe(make_buckets(*pack_, manager, 6)), "16x48: 3, 48x16: 3") << "a bucket without images isn't one";
  EXPECT_EQ(describe_small_buckets(all, 1), "");
  EXPECT_THAT(describe_small_buckets(all, 4), HasSubstr("2 of 3 buckets have fewer pictures than train_batch_size 4"));
  EXPECT_THAT(describe_small_buckets(all, 4), HasSubstr(": 16x48: 3, 32x32: 1"));
}

TEST_F(BucketsOfAPack, APictureThatLeavesNothingIsNamed) {
  BucketOptions options = options_;
  options.bucket_no_upscale = true;
  EXPECT_EQ(describe(make_buckets(*pack_, BucketManager(options), 9)), "16x48: 3, 32x32: 1, 48x16: 5");
  options.bucket_reso_steps = 24;
  try {
    make_buckets(*pack_, BucketManager(options), 9);
    FAIL() << "20 pixels of 24";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    EXPECT_THAT(error.message(), testing::AllOf(HasSubstr("'0.png'"), HasSubstr("'data.bucket_reso_steps' = 24")));
  }
}

TEST_F(BucketsOfAPack, EachBatchHasTheShapeOfItsBucketAndClassImagesFollow) {
  DataLoaderOptions options;
  options.seed = 3;
  options.train_batch_size = 2;
  options.num_workers = 2;
  options.transform = {.resolution = 32, .random_flip = true};
  options.buckets = options_;
  options.loss_masks = options.draw_noise_offset = options.draw_input_perturbation = true;
  options.class_images = {.pack = &*pack_, .num_class_images = 7, .class_prompt = "a class"};
  DataLoader loader(*pack_, options, MicroBatchSchedule(2, 0, 1, 0, 6));  // two epochs
  std::map<std::pair<int64_t, int64_t>, int> shapes;
  for (int i = 0; i < 12; ++i) {
    const Batch batch = loader.next();
    const int64_t height = batch.pixel_values.size(2), width = batch.pixel_values.size(3);
    ++shapes[{height, width}];
    EXPECT_EQ(batch.pixel_values.sizes(), at::IntArrayRef({4, 3, height, width}));
    for (const at::Tensor& latents : {batch.noise, batch.vae_noise, batch.input_perturbation})
      EXPECT_EQ(latents.sizes(), at::IntArrayRef({4, 4, height / 8, width / 8}));
    EXPECT_EQ(batch.loss_mask.sizes(), at::IntArrayRef({4, 1, height / 8, width / 8}));
    for (const TransformedImage& image : batch.images) {
      EXPECT_EQ(image.framing.cropped.height, height);
      EXPECT_EQ(image.framing.cropped.width, width);
    }
    // Each picture has one colour: that of its row.
    for (int64_t row = 0; row < 4; ++row) {
      const int64_t id =
          row < 2 ? batch.sample_ids[static_cast<size_t>(row)] : batch.class_sample_ids[static_cast<size_t>(row - 2)];
      const auto colour = static_cast<float>((static_cast<double>(9 * id) / 255 - 0.5) / 0.5);
      EXPECT_LT((batch.pixel_values[row] - colour).abs().max().item<float>(), 1e-6F);
    }
  }
  EXPECT_EQ(shapes, (std::map<std::pair<int64_t, int64_t>, int>{{{48, 16}, 4}, {{32, 32}, 2}, {{16, 48}, 6}}));
}

}  // namespace
}  // namespace lorashard
