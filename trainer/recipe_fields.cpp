#include "trainer/recipe_fields.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace lorashard {
namespace {

// The number a member holds, whichever numeric type it has; nothing for an absent optional.
std::optional<double> number_of(const FieldMember& member) {
  if (auto* p = std::get_if<int64_t*>(&member)) return static_cast<double>(**p);
  if (auto* p = std::get_if<double*>(&member)) return **p;
  if (auto* p = std::get_if<std::optional<int64_t>*>(&member); p && **p) return static_cast<double>(***p);
  if (auto* p = std::get_if<std::optional<double>*>(&member); p && **p) return ***p;
  return std::nullopt;
}

FieldCheck number_check(const std::string& expected, const std::function<bool(double)>& holds) {
  return {expected, [holds](const FieldMember& member) {
            const std::optional<double> value = number_of(member);
            return !value || holds(*value);
          }};
}

FieldCheck anything() {
  return {"", [](const FieldMember&) { return true; }};
}

FieldCheck at_least(int64_t low) {
  return number_check(fmt::format("at least {}", low), [low](double v) { return v >= static_cast<double>(low); });
}

FieldCheck between(int64_t low, int64_t high) {
  return number_check(fmt::format("from {} to {}", low, high), [low, high](double v) {
    return v >= static_cast<double>(low) && v <= static_cast<double>(high);
  });
}

FieldCheck above_zero() {
  return number_check("above 0", [](double v) { return v > 0; });
}

constexpr int64_t kMostSeconds = 1'000'000;

FieldCheck seconds_above_zero() {
  return number_check(fmt::format("above 0, at most {}", kMostSeconds),
                      [](double v) { return v > 0 && v <= static_cast<double>(kMostSeconds); });
}

FieldCheck below_one() {
  return number_check("at least 0 and below 1", [](double v) { return v >= 0 && v < 1; });
}

FieldCheck multiple_of(int64_t step, int64_t high) {
  return number_check(fmt::format("a multiple of {} from {} to {}", step, step, high), [step, high](double v) {
    return v >= static_cast<double>(step) && v <= static_cast<double>(high) &&
           std::fmod(v, static_cast<double>(step)) == 0;
  });
}

FieldCheck one_of(const std::vector<std::string>& words) {
  std::string list;
  for (const std::string& word : words) list += (list.empty() ? "" : ", ") + string_as_toml(word);
  return {(words.size() > 1 ? "one of " : "only ") + list, [words](const FieldMember& member) {
            if (auto* text = std::get_if<std::string*>(&member)) {
              return std::find(words.begin(), words.end(), **text) != words.end();
            }
            const auto& texts = *std::get<std::vector<std::string>*>(member);
            return std::all_of(texts.begin(), texts.end(), [&](const std::string& text) {
              return std::find(words.begin(), words.end(), text) != words.end();
            });
          }};
}

FieldCheck not_empty() {
  return {"not empty", [](const FieldMember& member) { return !std::get<std::string*>(member)->empty(); }};
}

FieldCheck distinct_names() {
  return {"at least one, none empty, none twice", [](const FieldMember& member) {
            const auto& names = *std::get<std::vector<std::string>*>(member);
            const std::set<std::string> distinct(names.begin(), names.end());
            return !names.empty() && distinct.size() == names.size() && !distinct.contains("");
          }};
}

// Upper bounds keep products (steps * batch, ranks * batch * accumulation) far from overflow; no real run comes near
// them.
constexpr int64_t kMostImages = int64_t{1} << 24;
constexpr int64_t kMostSteps = 1'000'000'000;

using Fields = std::vector<RecipeField>;

void add_general(Fields& f, Recipe& r, const FieldIdentity& identity, const FieldIdentity& free) {
  f.push_back({"", "task", &r.task, one_of({"text_to_image"}), identity, "What is trained."});
  f.push_back({"", "output_dir", &r.output_dir, not_empty(), free,
               "Folder of the run: adapter, checkpoints, metrics. Made when it isn't there. Required."});
  f.push_back({"", "seed", &r.seed, at_least(0), identity,
               "Every random number of the run follows from it and the number of the image in the run."});

  f.push_back(
      {"model", "pretrained_model_name_or_path", &r.model.pretrained_model_name_or_path, not_empty(), free,
       "Base model: a folder in the diffusers layout (unet/, vae/, text_encoder/, tokenizer/, scheduler/). Nothing is "
       "downloaded. Its weights, not its path, are part of the run's identity. Required."});
  f.push_back({"model", "variant", &r.model.variant, anything(), free,
               "Weights variant, such as \"fp16\" for *.fp16.safetensors. Empty: the plain files."});
  f.push_back({"model", "pretrained_vae_model_name_or_path", &r.model.pretrained_vae_model_name_or_path, anything(),
               free, "Folder of another VAE. Empty: the base model's own."});
  f.push_back({"model", "prediction_type", &r.model.prediction_type, one_of({"", "epsilon", "v_prediction"}), identity,
               "What the UNet predicts. Empty: what the base model's scheduler says."});

  f.push_back({"output", "formats", &r.output.formats, one_of({"diffusers"}), free,
               "Adapter files to write: \"diffusers\" is pytorch_lora_weights.safetensors."});
}

void add_lora_and_data(Fields& f, Recipe& r, const FieldIdentity& identity, const FieldIdentity& free) {
  f.push_back({"lora", "rank", &r.lora.rank, between(1, 65536), identity, "Rank of the LoRA matrices."});
  f.push_back({"lora", "lora_alpha", &r.lora.lora_alpha, above_zero(), identity,
               "The adapter's output is scaled by lora_alpha / rank. Absent: rank."});
  f.push_back({"lora", "target_modules", &r.lora.target_modules, distinct_names(), identity,
               "UNet layers that get an adapter: those whose path ends with one of these names."});
  f.push_back({"lora", "init", &r.lora.init, one_of({"gaussian"}), identity,
               "How the down matrices start (the up matrices start at 0): normal with deviation 1 / rank."});

  f.push_back({"data", "train_data_dir", &r.data.train_data_dir, not_empty(), free,
               "A pack made by `lorashard pack`, or an image folder, which is packed on first use. Its content, not "
               "its path, is "
               "part of the run's identity. Required."});
  f.push_back({"data", "resolution", &r.data.resolution, multiple_of(8, 16384), identity,
               "Side of the square training pictures in pixels."});
  f.push_back(
      {"data", "center_crop", &r.data.center_crop, anything(), identity, "Crop the middle instead of a random place."});
  f.push_back(
      {"data", "random_flip", &r.data.random_flip, anything(), identity, "Flip half of the pictures left to right."});
  f.push_back({"data", "image_interpolation_mode", &r.data.image_interpolation_mode,
               one_of({"nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"}), identity,
               "How pictures are resized."});
  f.push_back({"data", "max_train_samples", &r.data.max_train_samples, at_least(0), identity,
               "Use only the first so many samples. 0: all."});
  f.push_back({"data", "dataloader_num_workers", &r.data.dataloader_num_workers, between(0, 1024), free,
               "Threads of each rank that prepare batches ahead. 0: none, batches are made between steps."});
  f.push_back({"data", "image_column", &r.data.image_column, not_empty(), free,
               "Field of metadata.jsonl or metadata.csv that names the picture, when an image folder is packed."});
  f.push_back({"data", "caption_column", &r.data.caption_column, not_empty(), free,
               "Field of metadata.jsonl or metadata.csv that holds the caption, when an image folder is packed."});
  f.push_back({"data", "on_bad_image", &r.data.on_bad_image, one_of({"stop", "skip"}), free,
               "What to do with a picture that can't be decoded, when an image folder is packed."});
}

void add_training(Fields& f, Recipe& r, const FieldIdentity& identity) {
  const std::string& schedule = r.lr_scheduler.lr_scheduler;
  const FieldIdentity with_schedule = {schedule != "constant" && schedule != "constant_with_warmup",
                                       "unless lr_scheduler is constant or constant_with_warmup"};
  f.push_back({"train", "train_batch_size", &r.train.train_batch_size, between(1, 65536), identity,
               "Images in a micro-batch: what one rank takes through the model at once."});
  f.push_back(
      {"train", "total_batch_size", &r.train.total_batch_size, between(1, kMostImages), identity,
       "Images in an optimizer step, whatever the number of ranks; a multiple of train_batch_size. Absent: from "
       "gradient_accumulation_steps."});
  f.push_back({"train", "gradient_accumulation_steps", &r.train.gradient_accumulation_steps, between(1, kMostImages),
               identity,
               "Instead of total_batch_size: total_batch_size = train_batch_size * this * ranks, fixed at the first "
               "start and kept "
               "when the run is resumed on other ranks. Absent, and no total_batch_size: 1."});
  f.push_back({"train", "max_train_steps", &r.train.max_train_steps, between(1, kMostSteps), with_schedule,
               "Optimizer steps of the whole run. This or num_train_epochs."});
  f.push_back({"train", "num_train_epochs", &r.train.num_train_epochs, between(1, kMostSteps), with_schedule,
               "Instead of max_train_steps: ceil(samples * this / total_batch_size) steps."});
  f.push_back(
      {"train", "mixed_precision", &r.train.mixed_precision, one_of({"no", "fp16", "bf16"}), identity,
       "Type of the frozen base model and of the activations. The adapter is always fp32. This version has no GPU "
       "support, and fp16 needs one."});
  f.push_back({"train", "max_grad_norm", &r.train.max_grad_norm, above_zero(), identity,
               "The gradient of a step is scaled down to this 2-norm when it is larger."});
  f.push_back({"train", "deterministic", &r.train.deterministic, anything(), identity,
               "Sum gradients as integers, so that any number of ranks gives the same bits. false: sum in fp32."});
  f.push_back({"distributed", "threads_per_rank", &r.distributed.threads_per_rank, between(0, 4096),
               FieldIdentity{r.train.deterministic, "with deterministic = true"},
               "Compute threads of each rank. 0: 1 with deterministic = true, else the cores divided by the ranks of "
               "the host."});
  const FieldIdentity free = {false, "no"};
  f.push_back({"distributed", "collective_timeout_s", &r.distributed.collective_timeout_s, between(0, kMostSeconds), free,
               "Seconds after which a rank that sends no heartbeat is lost, and after which ranks that all wait for each "
               "other are stuck: the run ends with exit code 76. A rank that works is waited for. 0: no heartbeat."});
  f.push_back({"distributed", "heartbeat_s", &r.distributed.heartbeat_s, seconds_above_zero(), free,
               "Seconds between two heartbeats of a rank. At most a third of collective_timeout_s."});
  f.push_back({"distributed", "straggler_warning_s", &r.distributed.straggler_warning_s, seconds_above_zero(), free,
               "Seconds that the others wait for a rank before a warning names it."});
  f.push_back({"distributed", "digest_steps", &r.distributed.digest_steps, between(0, kMostSteps), free,
               "Every so many steps the ranks compare hashes of the adapter's weights; a difference ends the run with exit "
               "code 70. 0: never."});
}

void add_optimizer(Fields& f, Recipe& r, const FieldIdentity& identity) {
  f.push_back({"optimizer", "optimizer", &r.optimizer.optimizer, one_of({"adamw"}), identity, "Which optimizer."});
  f.push_back({"optimizer", "learning_rate", &r.optimizer.learning_rate, at_least(0), identity,
               "Learning rate after warmup, before the schedule lowers it."});
  f.push_back({"optimizer", "scale_lr", &r.optimizer.scale_lr, anything(), identity,
               "Multiply learning_rate by total_batch_size at the start; the run's recipe.toml holds the product."});
  f.push_back(
      {"optimizer", "adam_beta1", &r.optimizer.adam_beta1, below_one(), identity, "Decay of the mean of gradients."});
  f.push_back({"optimizer", "adam_beta2", &r.optimizer.adam_beta2, below_one(), identity,
               "Decay of the mean of squared gradients."});
  f.push_back({"optimizer", "adam_weight_decay", &r.optimizer.adam_weight_decay, at_least(0), identity,
               "Decoupled weight decay."});
  f.push_back({"optimizer", "adam_epsilon", &r.optimizer.adam_epsilon, above_zero(), identity,
               "Added to the root of the squared gradients' mean."});

  f.push_back({"lr_scheduler", "lr_scheduler", &r.lr_scheduler.lr_scheduler,
               one_of({"constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"}),
               identity, "How the learning rate changes over the run: diffusers' schedules of these names."});
  f.push_back({"lr_scheduler", "lr_warmup_steps", &r.lr_scheduler.lr_warmup_steps, between(0, kMostSteps), identity,
               "Optimizer steps over which the learning rate rises from 0. Not used by constant."});
  f.push_back({"lr_scheduler", "lr_num_cycles", &r.lr_scheduler.lr_num_cycles, between(1, kMostSteps), identity,
               "Restarts of cosine_with_restarts."});
  f.push_back(
      {"lr_scheduler", "lr_power", &r.lr_scheduler.lr_power, above_zero(), identity, "Exponent of polynomial."});
}

void add_keeping(Fields& f, Recipe& r, const FieldIdentity& free) {
  f.push_back({"checkpoint", "checkpointing_steps", &r.checkpoint.checkpointing_steps, between(1, kMostSteps), free,
               "Optimizer steps between checkpoints."});
  f.push_back({"checkpoint", "checkpoints_total_limit", &r.checkpoint.checkpoints_total_limit, at_least(0), free,
               "Keep only so many of the newest checkpoints. 0: keep all."});
  f.push_back({"checkpoint", "resume_from_checkpoint", &r.checkpoint.resume_from_checkpoint, not_empty(), free,
               "\"latest\": go on from the newest whole checkpoint of output_dir, or start where there is none. "
               "\"none\": start "
               "anew; refused where output_dir holds checkpoints. Else a checkpoint folder."});
  f.push_back({"checkpoint", "on_disk_full", &r.checkpoint.on_disk_full, one_of({"stop", "continue"}), free,
               "When there is no room for a checkpoint or a line of metrics. \"stop\": end with exit code 74. "
               "\"continue\": log an error and train on; the checkpoint before stays, and the next one is tried."});
  f.push_back({"report", "report_to", &r.report.report_to, one_of({"tensorboard"}), free,
               "Where metrics go besides metrics.jsonl. []: nowhere."});
  f.push_back({"report", "logging_dir", &r.report.logging_dir, not_empty(), free,
               "Folder of TensorBoard's event files, inside output_dir."});
  f.push_back({"debug", "trace_steps", &r.debug.trace_steps, at_least(0), free,
               "Write every tensor of the first so many steps to trace.safetensors. 0: none."});
}

}  // namespace

std::vector<RecipeField> recipe_fields(Recipe& recipe) {
  const FieldIdentity identity = {true, "yes"}, free = {false, "no"};
  Fields fields;
  add_general(fields, recipe, identity, free);
  add_lora_and_data(fields, recipe, identity, free);
  add_training(fields, recipe, identity);
  add_optimizer(fields, recipe, identity);
  add_keeping(fields, recipe, free);
  return fields;
}

std::string expected_in_words(const RecipeField& field) {
  struct {
    std::string operator()(const std::string*) { return "a string"; }
    std::string operator()(const int64_t*) { return "an integer"; }
    std::string operator()(const double*) { return "a number"; }
    std::string operator()(const bool*) { return "true or false"; }
    std::string operator()(const std::optional<int64_t>*) { return "an integer"; }
    std::string operator()(const std::optional<double>*) { return "a number"; }
    std::string operator()(const std::vector<std::string>*) { return "an array of strings"; }
  } type_in_words;
  const std::string type = std::visit(type_in_words, field.member);
  return field.check.expected.empty() ? type : type + ", " + field.check.expected;
}

}  // namespace lorashard
