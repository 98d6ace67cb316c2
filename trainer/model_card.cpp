#include "trainer/model_card.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "dist/durable_file.h"
#include "dist/log.h"

namespace lorashard {
namespace {

constexpr const char* kMark = "<!-- written by lorashard; without this line it is left alone -->";

/// YAML's double-quoted form: a path may hold ':' or '#'.
std::string yaml(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

bool is_dreambooth(const Recipe& recipe) { return recipe.task == "dreambooth"; }

std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

std::string front_matter(const Recipe& recipe, bool is_sdxl) {
  const std::string family = is_sdxl ? "openrail++" : "creativeml-openrail-m";
  return fmt::format(
      "---\n"
      "base_model: {0}\n"
      "license: {4}\n"
      "library_name: diffusers\n"
      "inference: true\n{1}"
      "tags:\n"
      "- {2}\n- {2}-diffusers\n- text-to-image\n- diffusers\n- diffusers-training\n- lora\n{3}"
      "---\n\n",
      yaml(recipe.model.pretrained_model_name_or_path),
      is_dreambooth(recipe) ? fmt::format("instance_prompt: {}\n", yaml(recipe.dreambooth.instance_prompt)) : "",
      is_sdxl ? "stable-diffusion-xl" : "stable-diffusion", is_dreambooth(recipe) ? (is_sdxl ? "- dreambooth\n- template:sd-lora\n" : "- dreambooth\n") : "",
      yaml(recipe.output.license.empty() ? family : recipe.output.license));
}

std::string how_to_use(const Recipe& recipe, bool is_sdxl) {
  const bool is_single_file = recipe.model.pretrained_model_name_or_path.ends_with(".safetensors");
  return fmt::format(
      "## Use\n\n"
      "```python\n"
      "from diffusers import {1}\n\n"
      "pipeline = {1}.{2}({0})\n"
      "pipeline.load_lora_weights(\"path/to/this/folder\")\n"
      "image = pipeline({3}, cross_attention_kwargs={{\"scale\": 1.0}}).images[0]\n"
      "```\n\n",
      yaml(recipe.model.pretrained_model_name_or_path),
      is_sdxl ? "StableDiffusionXLPipeline" : "StableDiffusionPipeline", is_single_file ? "from_single_file" : "from_pretrained",
      yaml(is_dreambooth(recipe) ? recipe.dreambooth.instance_prompt : "a prompt"));
}

/// What was trained on what, in a sentence or two.
std::string description(const Recipe& recipe, int64_t num_samples) {
  const std::string& base = recipe.model.pretrained_model_name_or_path;
  if (!is_dreambooth(recipe)) {
    return fmt::format("A LoRA adapter for {}, trained on {} captioned pictures.\n\n", base, num_samples);
  }
  const Recipe::DreamBooth& dreambooth = recipe.dreambooth;
  std::string text = fmt::format(
      "A LoRA adapter for {}, trained with [DreamBooth](https://dreambooth.github.io/) on {} pictures of one subject. Its words "
      "are: `{}`.",
      base, num_samples, dreambooth.instance_prompt);
  if (dreambooth.with_prior_preservation) {
    text += fmt::format(" {} pictures of `{}` beside them kept the class what it was.", dreambooth.num_class_images,
                        dreambooth.class_prompt);
  }
  return text + "\n\n";
}

}  // namespace

std::string model_card(const Recipe& recipe, const ModelCardFacts& facts) {
  const std::string name = std::filesystem::absolute(recipe.output_dir).lexically_normal().filename().string();
  std::string card = front_matter(recipe, facts.is_sdxl) + kMark + "\n\n";
  card += fmt::format("# {}\n\n", name.empty() ? "LoRA adapter" : name) + description(recipe, facts.num_samples);
  card += how_to_use(recipe, facts.is_sdxl);
  if (!facts.sample_sheet.empty()) {
    card += "## Samples\n\n";
    for (const std::string& prompt : recipe.validation.validation_prompt.texts) card += fmt::format("> {}\n\n", one_line(prompt));
    card += fmt::format("![samples]({})\n\n", facts.sample_sheet);
  }
  card += "## Training\n\n| | |\n|---|---|\n";
  const auto row = [&card](const char* what, const std::string& value) { card += fmt::format("| {} | {} |\n", what, value); };
  row("optimizer steps", std::to_string(facts.global_step));
  row("images a step", std::to_string(*recipe.train.total_batch_size));
  row("learning rate", fmt::format("{}, {}, {} steps of warmup", recipe.optimizer.learning_rate, recipe.lr_scheduler.lr_scheduler,
                                   recipe.lr_scheduler.lr_warmup_steps));
  row("resolution", std::to_string(recipe.data.resolution));
  row("LoRA", fmt::format("rank {}, alpha {}, {} parameters in {}", recipe.lora.rank, *recipe.lora.lora_alpha, facts.num_parameters,
                          fmt::join(recipe.lora.target_modules, ", ")));
  row("LoRA in the text encoder", recipe.lora.train_text_encoder ? fmt::format("{}", fmt::join(recipe.lora.text_encoder_target_modules, ", ")) : "no");
  row("precision", recipe.train.mixed_precision == "no" ? "fp32" : recipe.train.mixed_precision);
  row("seed", std::to_string(recipe.seed));
  row("pictures (SHA-256 of the pack)", facts.pack_hash);
  row("base (SHA-256)", facts.base_hash);
  card += fmt::format("\n{} The exact recipe:\n\n```toml\n{}```\n",
                      recipe.train.deterministic ? "The same recipe, pictures and base give the same adapter, bit for bit, on any number of "
                                                   "ranks."
                                                 : "Trained with deterministic = false: another run differs in the last bits.",
                      print_recipe(recipe));
  return card;
}

void write_model_card(const std::filesystem::path& output_dir, const Recipe& recipe, const ModelCardFacts& facts) {
  const std::filesystem::path path = output_dir / "README.md";
  if (std::filesystem::exists(path) && read_file(path).find(kMark) == std::string::npos) {
    log::info("'{}' is not one of ours: left as it is", path.string());
    return;
  }
  write_durably(path, model_card(recipe, facts));
}

}  // namespace lorashard
