#include <cstdlib>
#include <memory>
#include <string>

#include "dist/log.h"
#include "launch/commands.h"
#include "models/stable_diffusion.h"

namespace lorashard {
namespace {

std::string vocabulary_of_environment() {
  const char* value = std::getenv("LORASHARD_CLIP_VOCABULARY");
  return value ? value : "";
}

}  // namespace

void add_init_base_command(CLI::App& app) {
  struct Options {
    std::string preset, out, vocabulary = vocabulary_of_environment();
    uint64_t seed = 0;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("init-base", "write a base model with random weights, for trials and tests");
  command->add_option("out", options->out, "the new folder, in diffusers layout")->required();
  command->add_option("--preset", options->preset, "tiny-sd15, tiny-sd21, tiny-sdxl, or the full-size sd15, sd21, sdxl")->required();
  command->add_option("--seed", options->seed, "of the weights")->capture_default_str();
  command->add_option("--vocabulary", options->vocabulary,
                      "bpe_simple_vocab_16e6.txt.gz (default: $LORASHARD_CLIP_VOCABULARY)");
  command->callback([options] {
    if (options->vocabulary.empty()) {
      log::info(
          "no CLIP vocabulary given (--vocabulary or LORASHARD_CLIP_VOCABULARY): the tokenizer knows single bytes");
    }
    init_base(options->preset, options->out, options->seed, options->vocabulary);
    log::info("wrote base model '{}': {} with random weights, seed {}", options->out, options->preset, options->seed);
  });
}

}  // namespace lorashard
