#include "data/data_loader.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <iterator>
#include <thread>

#include "data/image_write.h"
#include "dist/error.h"
#include "dist/philox.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

using testing::HasSubstr;

constexpr int kNumSamples = 7;

std::string png_name(int i) { return fmt::format("picture_{}.png", i); }

std::vector<uint8_t> make_png(int i) {
  Image image{20 + i, 24, {}};
  for (int64_t j = 0; j < image.height * image.width * 3; ++j) image.rgb.push_back(static_cast<uint8_t>(j * (i + 3)));
  return encode_png(image);
}

class DataLoaderTest : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_ / "source");
    std::ofstream table(folder_ / "source/metadata.jsonl");
    for (int i = 0; i < kNumSamples; ++i) {
      const auto png = make_png(i);
      std::ofstream(folder_ / "source" / png_name(i), std::ios::binary)
          .write(reinterpret_cast<const char*>(png.data()), static_cast<std::streamsize>(png.size()));
      table << fmt::format("{{\"file_name\": \"{}\", \"text\": \"caption {}\"}}\n", png_name(i), i);
    }
    table.close();
    pack_images(folder_ / "source", folder_ / "pack", {});
    pack_.emplace(folder_ / "pack");
  }

  DataLoaderOptions options(int num_workers) const {
    DataLoaderOptions options;
    options.seed = 77;
    options.train_batch_size = 2;
    options.num_workers = num_workers;
    options.prefetch_batches = 3;
    options.transform = {.resolution = 16, .random_flip = true};
    options.captions.caption_dropout_rate = 0.3;
    options.tokenize = [](const std::vector<std::string>& captions) {
      const auto ids = at::empty({static_cast<int64_t>(captions.size())}, at::kLong);
      for (size_t i = 0; i < captions.size(); ++i)
        ids.data_ptr<int64_t>()[i] = static_cast<int64_t>(captions[i].size());
      return ids;
    };
    return options;
  }

  /// The loader gives the batches of 10 steps of 2 micro-batches: 40 slots, almost 6 epochs.
  DataLoader loader(const DataLoaderOptions& options) const {
    return {*pack_, options, MicroBatchSchedule(2, 0, 1, 0, 10)};
  }

  /// One byte of the picture of `row` is flipped inside its shard.
  void damage(int row) {
    pack_.reset();
    const auto png = make_png(row);
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_ / "pack")) {
      if (!entry.is_regular_file()) continue;
      std::ifstream in(entry.path(), std::ios::binary);
      std::string bytes{std::istreambuf_iterator<char>(in), {}};
      const auto at = std::ranges::search(bytes, png, {}, [](char c) { return static_cast<uint8_t>(c); });
      if (at.empty()) continue;
      at.begin()[static_cast<int64_t>(png.size()) / 2] ^= 1;
      std::ofstream(entry.path(), std::ios::binary) << bytes;
    }
    pack_.emplace(folder_ / "pack");
  }

  TempDir folder_;
  std::optional<Pack> pack_;
};

void expect_equal(const Batch& a, const Batch& b) {
  EXPECT_EQ(a.micro_batch, b.micro_batch);
  EXPECT_EQ(a.slots, b.slots);
  EXPECT_EQ(a.sample_ids, b.sample_ids);
  EXPECT_EQ(a.captions, b.captions);
  EXPECT_TRUE(at::equal(a.pixel_values, b.pixel_values));
  EXPECT_TRUE(at::equal(a.input_ids, b.input_ids));
  EXPECT_TRUE(at::equal(a.vae_noise, b.vae_noise));
  EXPECT_TRUE(at::equal(a.noise, b.noise));
  EXPECT_TRUE(at::equal(a.timesteps, b.timesteps));
  for (size_t i = 0; i < a.images.size(); ++i) {
    EXPECT_EQ(a.images[i].crop_top, b.images[i].crop_top);
    EXPECT_EQ(a.images[i].flipped, b.images[i].flipped);
  }
}

TEST_F(DataLoaderTest, TheBatchesAreTheSameForAnyNumberOfWorkers) {
  auto inline_loader = loader(options(0)), one = loader(options(1)), three = loader(options(3));
  for (int m = 0; m < 20; ++m) {
    const Batch expected = inline_loader.next();
    ASSERT_EQ(expected.micro_batch, m);
    expect_equal(expected, one.next());
    expect_equal(expected, three.next());
  }
}

TEST_F(DataLoaderTest, AMicroBatchIsTheSameWhateverCameBeforeIt) {
  auto all = loader(options(0));
  DataLoader rank_1(*pack_, options(2), MicroBatchSchedule(2, 1, 2, 5, 10));
  for (int m = 0; m < 20; ++m) {
    const Batch batch = all.next();
    if (m >= 10 && m % 2 == 1) expect_equal(batch, rank_1.next());
  }
}

TEST_F(DataLoaderTest, HeldOutRowsAreInNoEpochAndTheOthersInEach) {
  auto chosen = options(0);
  chosen.held_out_rows = {1, 6};
  auto batches = loader(chosen);
  std::vector<int> times(kNumSamples);
  for (int m = 0; m < 20; ++m)
    for (const int64_t row : batches.next().sample_ids) ++times[static_cast<size_t>(row)];
  EXPECT_THAT(times, testing::ElementsAre(8, 0, 8, 8, 8, 8, 0));
}

TEST_F(DataLoaderTest, AHeldOutRowIsTheSameWhateverIsDrawnInTraining) {
  auto chosen = options(0);
  chosen.captions.caption_dropout_rate = 1;
  chosen.captions.caption_tag_dropout_rate = 1;
  const Batch batch = held_out_batch(*pack_, chosen, 5);
  EXPECT_THAT(batch.sample_ids, testing::ElementsAre(5));
  EXPECT_THAT(batch.captions, testing::ElementsAre("caption 5"));
  EXPECT_EQ(batch.input_ids.item<int64_t>(), 9);
  EXPECT_FALSE(batch.images[0].flipped);
  EXPECT_FALSE(batch.vae_noise.any().item<bool>());
  chosen.transform.center_crop = true;
  chosen.transform.random_flip = false;
  const at::Tensor pixels = at::empty({3, 16, 16}, at::kFloat);
  transform_image(decode_image(pack_->read_image(5), "5"), chosen.transform, 0, 0, false, pixels);
  EXPECT_TRUE(at::equal(batch.pixel_values[0], pixels));
}

TEST_F(DataLoaderTest, MultiresNoiseTakesThePlaceOfTheNoiseAlone) {
  auto chosen = options(0);
  chosen.vae_scale_factor = 2;  // latents of 8 x 8
  const Batch plain = loader(chosen).next();
  chosen.multires_noise.iterations = 4;
  const Batch batch = loader(chosen).next();
  EXPECT_TRUE(at::equal(batch.vae_noise, plain.vae_noise));
  EXPECT_TRUE(at::equal(batch.timesteps, plain.timesteps));
  for (int i = 0; i < 2; ++i) {
    EXPECT_FALSE(at::allclose(batch.noise[i], plain.noise[i], 0.1, 0.1));
    EXPECT_NEAR(batch.noise[i].std().item<double>(), 1, 1e-6);
  }
}

TEST_F(DataLoaderTest, EveryFieldComesFromTheSlot) {
  const auto chosen = options(2);
  auto batches = loader(chosen);
  const Sampler sampler(chosen.seed, kNumSamples, 2);
  for (int m = 0; m < 20; ++m) {
    const Batch batch = batches.next();
    const auto slots = sampler.micro_batch(m);
    for (int64_t i = 0; i < 2; ++i) {
      const auto [slot, row, epoch] = slots[i];
      EXPECT_EQ(batch.slots[i], slot);
      EXPECT_EQ(batch.sample_ids[i], row);
      const bool dropped = uniform(77, slot, Purpose::caption_dropout) < 0.3;
      EXPECT_EQ(batch.captions[i], dropped ? "" : fmt::format("caption {}", row));
      EXPECT_EQ(batch.input_ids[i].item<int64_t>(), static_cast<int64_t>(batch.captions[i].size()));
      EXPECT_EQ(batch.images[i].original_size.height, 20 + row);
      EXPECT_EQ(batch.timesteps[i].item<int64_t>(), uniform_int(77, slot, Purpose::timestep, 1000));
      const auto expected = at::empty({4, 2, 2}, at::kFloat);
      fill_normal({expected.data_ptr<float>(), 16}, 77, slot, Purpose::noise);
      EXPECT_TRUE(at::equal(batch.noise[i], expected));
      fill_normal({expected.data_ptr<float>(), 16}, 77, slot, Purpose::vae_sample);
      EXPECT_TRUE(at::equal(batch.vae_noise[i], expected));
      const auto pixels = at::empty({3, 16, 16}, at::kFloat);
      transform_image(decode_image(make_png(static_cast<int>(row)), "picture"), chosen.transform, 77, slot, false,
                      pixels);
      EXPECT_TRUE(at::equal(batch.pixel_values[i], pixels));
    }
    EXPECT_GE(batch.wait_ms, 0);
  }
}

TEST_F(DataLoaderTest, ABrokenPictureStopsItsOwnMicroBatchAndIsNamed) {
  damage(4);
  for (const int num_workers : {0, 1, 3}) {
    auto batches = loader(options(num_workers));
    const Sampler sampler(77, kNumSamples, 2);
    int failed = 0;
    for (int m = 0; m < 20; ++m) {
      const auto slots = sampler.micro_batch(m);
      if (std::ranges::none_of(slots, [](const Slot& slot) { return slot.row == 4; })) {
        EXPECT_EQ(batches.next().micro_batch, m);
        continue;
      }
      ++failed;
      try {
        batches.next();
        ADD_FAILURE() << "micro-batch " << m << " was made";
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::bad_data);
        EXPECT_THAT(error.what(), HasSubstr(png_name(4)));
      }
    }
    EXPECT_GE(failed, 5);
  }
}

TEST_F(DataLoaderTest, AnExceptionOfTheTokenizerArrivesToo) {
  auto chosen = options(2);
  chosen.tokenize = [](const std::vector<std::string>&) -> at::Tensor { throw Error(ErrorKind::internal, "no words"); };
  auto batches = loader(chosen);
  EXPECT_THROW(batches.next(), Error);
}

TEST_F(DataLoaderTest, NoMoreThanPrefetchBatchesAreMadeAhead) {
  auto chosen = options(4);
  std::atomic<int> made = 0, most_ahead = 0, asked_for = 0;
  const auto tokenize = chosen.tokenize;
  chosen.tokenize = [&](const std::vector<std::string>& captions) {
    const int ahead = ++made - asked_for;
    for (int most = most_ahead; ahead > most && !most_ahead.compare_exchange_weak(most, ahead);) {
    }
    return tokenize(captions);
  };
  auto batches = loader(chosen);
  while (made < 3) std::this_thread::yield();  // they come without being asked for
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(made, 3);
  for (int m = 0; m < 20; ++m) {
    ++asked_for;
    batches.next();
  }
  EXPECT_EQ(made, 20);
  EXPECT_LE(most_ahead, 3);
}

TEST_F(DataLoaderTest, CanBeDestroyedInTheMiddleOfARun) {
  for (int taken = 0; taken < 12; ++taken) {
    std::atomic<int> alive = 0;
    auto chosen = options(3);
    const auto tokenize = chosen.tokenize;
    chosen.tokenize = [&](const std::vector<std::string>& captions) {
      ++alive;
      auto ids = tokenize(captions);
      --alive;
      return ids;
    };
    {
      auto batches = loader(chosen);
      for (int m = 0; m < taken; ++m) batches.next();
    }
    EXPECT_EQ(alive, 0) << "a thread outlived the loader";
  }
}

TEST_F(DataLoaderTest, AskingPastTheEndIsAnError) {
  for (const int num_workers : {0, 2}) {
    DataLoader batches(*pack_, options(num_workers), MicroBatchSchedule(2, 0, 1, 0, 1));
    batches.next();
    batches.next();
    EXPECT_THROW(batches.next(), Error);
  }
}

TEST_F(DataLoaderTest, ARankWithNothingToDoStartsAndEnds) {
  DataLoader batches(*pack_, options(2), MicroBatchSchedule(1, 1, 2, 0, 5));
  EXPECT_THROW(batches.next(), Error);
}

}  // namespace
}  // namespace lorashard
