// Prior preservation in the loader: class images behind the instance images, with numbers of their own.
#include <ATen/ATen.h>
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "data/data_loader.h"
#include "data/image_write.h"
#include "dist/philox.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

constexpr int kInstances = 3, kClassImages = 5, kBatch = 2, kSteps = 15;

void write_pictures(const std::filesystem::path& folder, int count, int height) {
  std::filesystem::create_directories(folder);
  for (int i = 0; i < count; ++i) {
    Image image{height + i, 24, {}};
    for (int64_t j = 0; j < image.height * image.width * 3; ++j) image.rgb.push_back(static_cast<uint8_t>(j * (i + 3)));
    const auto png = encode_png(image);
    std::ofstream(folder / fmt::format("{}.png", i), std::ios::binary)
        .write(reinterpret_cast<const char*>(png.data()), static_cast<std::streamsize>(png.size()));
  }
}

class ClassImagesTest : public testing::Test {
 protected:
  void SetUp() override {
    write_pictures(folder_ / "instances", kInstances, 30);
    write_pictures(folder_ / "classes", kClassImages + 2, 50);
    pack_images(folder_ / "instances", folder_ / "instance-pack", {});
    pack_images(folder_ / "classes", folder_ / "class-pack", {});
    instances_.emplace(folder_ / "instance-pack");
    classes_.emplace(folder_ / "class-pack");
  }

  DataLoaderOptions options(bool with_class_images) const {
    DataLoaderOptions options;
    options.seed = 5;
    options.train_batch_size = kBatch;
    options.num_workers = 0;
    options.transform = {.resolution = 16, .random_flip = true};
    options.own_captions = false;
    options.instance_prompt = "a photo of sks dog";
    if (with_class_images) {
      options.class_images = {.pack = &*classes_, .num_class_images = kClassImages, .class_prompt = "a photo of dog"};
    }
    return options;
  }

  DataLoader loader(bool with_class_images) const {
    return {*instances_, options(with_class_images), MicroBatchSchedule(1, 0, 1, 0, kSteps)};
  }

  TempDir folder_;
  std::optional<Pack> instances_, classes_;
};

TEST_F(ClassImagesTest, InstanceRowsAreThoseOfARunWithoutThem) {
  auto with = loader(true), without = loader(false);
  for (int m = 0; m < kSteps; ++m) {
    const Batch both = with.next(), alone = without.next();
    EXPECT_EQ(both.slots, alone.slots);
    EXPECT_EQ(both.sample_ids, alone.sample_ids);
    EXPECT_TRUE(alone.class_sample_ids.empty());
    ASSERT_EQ(both.pixel_values.size(0), 2 * kBatch);
    EXPECT_TRUE(at::equal(both.pixel_values.narrow(0, 0, kBatch), alone.pixel_values));
    EXPECT_TRUE(at::equal(both.noise.narrow(0, 0, kBatch), alone.noise));
    EXPECT_TRUE(at::equal(both.vae_noise.narrow(0, 0, kBatch), alone.vae_noise));
    EXPECT_TRUE(at::equal(both.timesteps.narrow(0, 0, kBatch), alone.timesteps));
  }
}

TEST_F(ClassImagesTest, ClassRowsDrawWithPurposesOfTheirOwn) {
  auto batches = loader(true);
  for (int m = 0; m < kSteps; ++m) {
    const Batch batch = batches.next();
    for (int64_t i = 0; i < kBatch; ++i) {
      const uint64_t slot = batch.slots[i];
      const int64_t row = kBatch + i;
      EXPECT_EQ(batch.captions[i], "a photo of sks dog");
      EXPECT_EQ(batch.captions[row], "a photo of dog");
      EXPECT_EQ(batch.images[row].original_size.height, 50 + batch.class_sample_ids[i]);
      EXPECT_EQ(batch.timesteps[row].item<int64_t>(), uniform_int(5, slot, static_cast<Purpose>(0x8000 + 8), 1000));
      EXPECT_EQ(batch.images[row].flipped, uniform(5, slot, static_cast<Purpose>(0x8000 + 3)) < 0.5);
      const auto expected = at::empty({4, 2, 2}, at::kFloat);
      fill_normal({expected.data_ptr<float>(), 16}, 5, slot, static_cast<Purpose>(0x8000 + 7));
      EXPECT_TRUE(at::equal(batch.noise[row], expected));
      fill_normal({expected.data_ptr<float>(), 16}, 5, slot, static_cast<Purpose>(0x8000 + 6));
      EXPECT_TRUE(at::equal(batch.vae_noise[row], expected));
    }
  }
}

TEST_F(ClassImagesTest, EveryClassImageIsSeenOnceInItsOwnEpoch) {
  auto batches = loader(true);
  std::vector<int64_t> rows;
  for (int m = 0; m < kSteps; ++m) {
    const Batch batch = batches.next();
    rows.insert(rows.end(), batch.class_sample_ids.begin(), batch.class_sample_ids.end());
  }
  ASSERT_EQ(rows.size(), size_t{kBatch} * kSteps);
  std::set<std::vector<int64_t>> orders;
  for (auto epoch = rows.begin(); epoch != rows.end(); epoch += kClassImages) {
    const std::vector<int64_t> order(epoch, epoch + kClassImages);
    EXPECT_EQ(std::set<int64_t>(order.begin(), order.end()), (std::set<int64_t>{0, 1, 2, 3, 4}));
    orders.insert(order);
  }
  EXPECT_GT(orders.size(), 1U) << "every epoch has the same order";
}

}  // namespace
}  // namespace lorashard
