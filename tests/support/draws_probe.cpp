// draws_probe < ASKED.json > DRAWN.json: the captions, timesteps and noise of slots, for tests/oracle/test_draws.py.
//   {"captions": [{"candidates": [...], "options": {...}, "seed": 1, "slots": [[slot, epoch], ...]}, ...],
//    "timesteps": [{"options": {...}, "seed": 1, "first_slot": 0, "count": 10}, ...],
//    "multires_noise": [{"iterations": 6, "discount": 0.3, "seed": 1, "slot": 0, "class_image": false, "shape": [4, 8, 8]}, ...]}
// gives the same three lists with a list of texts, of timesteps or of the noise's elements for each.
#include <cstdio>
#include <exception>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/captions.h"
#include "data/multires_noise.h"
#include "data/timestep_distribution.h"
#include "dist/philox.h"

namespace lorashard {
namespace {

using Json = nlohmann::json;

Json captions_of(const Json& asked) {
  const Json& o = asked.at("options");
  const CaptionOptions defaults;
  const CaptionOptions options{
      .caption_prefix = o.value("caption_prefix", defaults.caption_prefix),
      .caption_suffix = o.value("caption_suffix", defaults.caption_suffix),
      .caption_dropout_rate = o.value("caption_dropout_rate", defaults.caption_dropout_rate),
      .caption_dropout_every_n_epochs = o.value("caption_dropout_every_n_epochs", defaults.caption_dropout_every_n_epochs),
      .enable_wildcard = o.value("enable_wildcard", defaults.enable_wildcard),
      .shuffle_caption = o.value("shuffle_caption", defaults.shuffle_caption),
      .keep_tokens = o.value("keep_tokens", defaults.keep_tokens),
      .keep_tokens_separator = o.value("keep_tokens_separator", defaults.keep_tokens_separator),
      .caption_separator = o.value("caption_separator", defaults.caption_separator),
      .secondary_separator = o.value("secondary_separator", defaults.secondary_separator),
      .caption_tag_dropout_rate = o.value("caption_tag_dropout_rate", defaults.caption_tag_dropout_rate)};
  const auto candidates = asked.at("candidates").get<std::vector<std::string>>();
  Json texts = Json::array();
  for (const Json& slot : asked.at("slots"))
    texts.push_back(slot_caption(candidates, options, asked.at("seed").get<uint64_t>(),
                                 {slot[0].get<uint64_t>(), 0, slot[1].get<int64_t>()}));
  return texts;
}

Json timesteps_of(const Json& asked) {
  const Json& o = asked.at("options");
  const TimestepDistribution distribution({.num_train_timesteps = o.at("num_train_timesteps").get<int64_t>(),
                                           .min_timestep = o.value("min_timestep", int64_t{0}),
                                           .max_timestep = o.value("max_timestep", int64_t{0}),
                                           .bias_strategy = o.value("timestep_bias_strategy", "none"),
                                           .bias_multiplier = o.value("timestep_bias_multiplier", 1.0),
                                           .bias_begin = o.value("timestep_bias_begin", int64_t{0}),
                                           .bias_end = o.value("timestep_bias_end", int64_t{1000}),
                                           .bias_portion = o.value("timestep_bias_portion", 0.25)});
  Json drawn = Json::array();
  const auto first = asked.at("first_slot").get<uint64_t>(), count = asked.at("count").get<uint64_t>();
  for (uint64_t slot = first; slot < first + count; ++slot)
    drawn.push_back(distribution.draw(asked.at("seed").get<uint64_t>(), slot));
  return drawn;
}

Json multires_noise_of(const Json& asked) {
  const auto seed = asked.at("seed").get<uint64_t>(), slot = asked.at("slot").get<uint64_t>();
  const bool class_image = asked.at("class_image").get<bool>();
  const auto shape = asked.at("shape").get<std::vector<int64_t>>();
  std::vector<float> noise(static_cast<size_t>(shape[0] * shape[1] * shape[2]));
  fill_normal(noise, seed, slot, purpose_of(Purpose::noise, class_image));
  add_multires_noise(noise, shape[0], shape[1], shape[2],
                     {.iterations = asked.at("iterations").get<int64_t>(), .discount = asked.at("discount").get<double>()}, seed, slot,
                     class_image);
  return noise;
}

}  // namespace
}  // namespace lorashard

int main() {
  try {
    const auto asked = nlohmann::json::parse(std::cin);
    nlohmann::json drawn;
    for (const char* kind : {"captions", "timesteps", "multires_noise"}) drawn[kind] = nlohmann::json::array();
    for (const auto& one : asked.at("captions")) drawn["captions"].push_back(lorashard::captions_of(one));
    for (const auto& one : asked.at("timesteps")) drawn["timesteps"].push_back(lorashard::timesteps_of(one));
    for (const auto& one : asked.at("multires_noise")) drawn["multires_noise"].push_back(lorashard::multires_noise_of(one));
    std::cout << drawn << '\n';
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
