#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/sin.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/sha256.h"
#include "tests/fuzz/fuzz.h"
#include "tests/support/temp_dir.h"
#include "trainer/checkpoint.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const char* const kFiles[] = {"manifest.json", "pytorch_lora_weights.safetensors", "recipe.toml", "state.safetensors"};

class FuzzCheckpoint : public testing::Test {
 protected:
  FuzzCheckpoint() {
    const at::Tensor values = at::sin(at::arange(1000, at::kFloat));
    const TrainingState state = {.global_step = 3,
                                 .updates = 2,
                                 .skipped_in_a_row = 1,
                                 .parameters = values,
                                 .parts = {.tensors = {{"optimizer/exp_avg", values}, {"optimizer/quantised", values.to(at::kByte)}},
                                           .scalars = {{"optimizer/d", 0.1}, {"loss_scale/good_steps", int64_t{3}}}},
                                 .recipe = "seed = 1337\n",
                                 .pack_hash = "9f86d081",
                                 .base_hash = "60303ae2",
                                 .parameter_keys = {"a.down.weight 2x500"}};
    folder_ = write_checkpoint(run_.path(), state, {{"a.down.weight", values.view({2, 500})}}, {{"note", "test"}});
    for (const char* name : kFiles) whole_[name] = read_file(folder_ / name);
  }
  /// Whether read_checkpoint() refuses what is there now, naming a file of it.
  bool is_refused() const {
    try {
      read_checkpoint(folder_);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::bad_data) << error.what();
      EXPECT_THAT(error.message(), HasSubstr(folder_.string()));
      return true;
    }
    return false;
  }
  /// Makes the manifest agree with a file that was changed: damage that no hash tells of.
  void sign(const std::string& name) const {
    nlohmann::json manifest = nlohmann::json::parse(whole_.at("manifest.json"));
    manifest["files"][name] = {{"size", fs::file_size(folder_ / name)}, {"sha256", sha256_file(folder_ / name)}};
    write_quickly(folder_ / "manifest.json", manifest.dump(2) + "\n");
  }
  TempDir run_;
  fs::path folder_;
  std::map<std::string, std::string> whole_;
  std::mt19937_64 random_{2025};
};

TEST_F(FuzzCheckpoint, EveryFlippedBitIsReported) {
  std::map<std::string, int> flips;
  int refused = 0;
  for (int i = 0; i < 1000; ++i) {
    const std::string name = kFiles[static_cast<size_t>(i) % std::size(kFiles)];
    const std::string damaged = with_flipped_bit(whole_.at(name), random_);
    write_quickly(folder_ / name, damaged);
    const auto at = std::mismatch(damaged.begin(), damaged.end(), whole_.at(name).begin()).first - damaged.begin();
    const bool is_seen = is_refused();
    EXPECT_TRUE(is_seen) << name << ": a bit flipped in byte " << at << " was not seen";
    refused += is_seen;
    ++flips[name];
    write_quickly(folder_ / name, whole_.at(name));
  }
  std::printf("checkpoint: 1000 bit flips in %zu files: %d refused\n", flips.size(), refused);
  EXPECT_EQ(refused, 1000);
  EXPECT_FALSE(is_refused());
}

TEST_F(FuzzCheckpoint, ManifestsOfAnyTextAreRefused) {
  const std::string tokens[] = {"{", "}", "[", "]", "\"", ":", ",", "null", "-1", "1e999", "18446744073709551616", "\\ud800", "\xff", "2",
                                std::string(1, '\0'), "\"files\"", "\"size\"", "{\"size\": {}}"};
  const int trials = fuzz_count(3000, 30'000);
  int refused = 0, same = 0;
  for (int i = 0; i < trials; ++i) {
    const std::string damaged = mutated(whole_.at("manifest.json"), tokens, random_);
    write_quickly(folder_ / "manifest.json", damaged);
    const bool is_changed = damaged != whole_.at("manifest.json");
    same += !is_changed;
    EXPECT_EQ(is_refused(), is_changed) << damaged;
    refused += is_changed;
  }
  std::printf("checkpoint: %d mutated manifests: %d refused, %d the same text\n", trials, refused, same);
}

TEST_F(FuzzCheckpoint, AStateWhoseHashIsRightButNothingElseCrashesNothing) {
  const std::string tokens[] = {"{", "}", "[", "]", "\"", ":", ",", "null", "-1", "9223372036854775807", "18446744073709551616", "[]",
                                "\"F32\"", "\"F64\"", "\"I64\"", "\"BOOL\"", "\"U8\"", "\"parameters\"", "\"global_step\"", std::string(1, '\0')};
  const std::string& state = whole_.at("state.safetensors");
  const size_t header_end = 8 + static_cast<unsigned char>(state[0]) + 256 * static_cast<unsigned char>(state[1]);
  const int trials = fuzz_count(3000, 30'000);
  int refused = 0;
  for (int i = 0; i < trials; ++i) {
    std::string header = mutated(state.substr(8, header_end - 8), tokens, random_);
    const uint64_t length = header.size();
    write_quickly(folder_ / "state.safetensors",
                  std::string(reinterpret_cast<const char*>(&length), 8) + header + state.substr(header_end));
    sign("state.safetensors");
    refused += is_refused();
  }
  std::printf("checkpoint: %d mutated states with the right hash: %d refused, %d read\n", trials, refused, trials - refused);
  EXPECT_GT(refused, trials / 2);
  EXPECT_LT(refused, trials) << "the parser was reached";
}

}  // namespace
}  // namespace lorashard
