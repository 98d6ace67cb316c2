// The recipe: every setting of a run. Keys are the flag names of diffusers' training scripts, in tables.
// trainer/recipe_fields.h lists each key once (doc, check, identity or free); parsing, checking, printing, `lorashard
// help recipe` and docs/recipe_reference.md follow it.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lorashard {

/// An array of strings; a recipe may give a single one without brackets.
struct StringOrArray {
  std::vector<std::string> texts;
};

struct Recipe {
  std::string task = "text_to_image";
  std::string output_dir;
  int64_t seed = 0;

  struct Model {
    std::string pretrained_model_name_or_path, config, tokenizer_name, variant, pretrained_vae_model_name_or_path, prediction_type;
    bool rescale_betas_zero_snr = false;
    int64_t clip_skip = 0;
  } model;
  struct Output {
    std::vector<std::string> formats = {"diffusers"};
    std::string license;  ///< of the model card; empty: what the base's family came out under
  } output;
  struct Lora {
    int64_t rank = 4;
    std::optional<double> lora_alpha;  ///< absent: rank
    std::vector<std::string> target_modules = {"to_k", "to_q", "to_v", "to_out.0"};
    std::string init = "gaussian";
    bool train_text_encoder = false;
    std::vector<std::string> text_encoder_target_modules = {"q_proj", "k_proj", "v_proj", "out_proj"};
    double lora_dropout = 0, rank_dropout = 0, module_dropout = 0;
    std::optional<double> scale_weight_norms;  ///< absent: no limit
    bool use_rslora = false, use_dora = false;
    std::map<std::string, int64_t> rank_pattern;
    std::map<std::string, double> alpha_pattern;
    std::string lora_weights, lora_weights_sha256;  ///< the second is filled in at the first start
  } lora;
  struct Data {
    std::string train_data_dir;
    int64_t resolution = 512;
    bool enable_bucket = false;
    int64_t min_bucket_reso = 256, max_bucket_reso = 1024, bucket_reso_steps = 64;
    bool bucket_no_upscale = false;
    bool center_crop = false, random_flip = false;
    std::string image_interpolation_mode = "lanczos";
    int64_t max_train_samples = 0;  ///< 0: all
    int64_t dataloader_num_workers = 2;
    std::string image_column = "file_name", caption_column = "text", mask_column, weight_column, repeats_column;
    bool alpha_masks = false, all_caption_lines = false;
    std::string on_bad_image = "stop";
    bool cache_latents = false, cache_text_embeddings = false;
    std::string cache_dir;  ///< empty: output_dir/cache
  } data;
  struct DreamBooth {
    std::string instance_data_dir, instance_prompt;
    bool custom_instance_prompts = false;
    bool with_prior_preservation = false;
    std::string class_data_dir, class_prompt;
    int64_t num_class_images = 100;
    double prior_loss_weight = 1.0;
    std::string prior_generation_precision;  ///< empty: train.mixed_precision
  } dreambooth;
  struct Train {
    int64_t train_batch_size = 1;
    std::optional<int64_t> total_batch_size, gradient_accumulation_steps;
    std::optional<int64_t> max_train_steps, num_train_epochs;
    std::string mixed_precision = "no";
    bool gradient_checkpointing = false;
    int64_t initial_loss_scale = 65536, loss_scale_growth_interval = 2000;  ///< of fp16
    double max_grad_norm = 1.0;
    std::optional<double> snr_gamma;
    double noise_offset = 0, input_perturbation = 0;
    bool do_edm_style_training = false;
    bool deterministic = true;
  } train;
  struct Noise {
    bool noise_offset_random_strength = false, input_perturbation_random_strength = false;
    std::optional<double> adaptive_noise_scale;
    int64_t multires_noise_iterations = 0;  ///< 0: none
    double multires_noise_discount = 0.3;
  } noise;
  struct Timesteps {
    int64_t min_timestep = 0, max_timestep = 0;  ///< max 0: all of the base's
    std::string timestep_bias_strategy = "none";
    double timestep_bias_multiplier = 1.0;
    int64_t timestep_bias_begin = 0, timestep_bias_end = 1000;
    double timestep_bias_portion = 0.25;
  } timesteps;
  struct Loss {
    std::string loss_type = "l2", huber_schedule = "snr";
    double huber_c = 0.1, huber_scale = 1.0;
    bool scale_v_pred_loss_like_noise_pred = false, debiased_estimation_loss = false;
    double v_pred_like_loss = 0;
    bool masked_loss = false, normalize_masked_area_loss = false;
    double unmasked_weight = 0;
  } loss;
  struct Captions {
    std::string caption_prefix, caption_suffix;
    double caption_dropout_rate = 0, caption_tag_dropout_rate = 0;
    int64_t caption_dropout_every_n_epochs = 0;
    bool shuffle_caption = false, enable_wildcard = false;
    int64_t keep_tokens = 0;
    std::string keep_tokens_separator, caption_separator = ",", secondary_separator;
  } captions;
  struct Distributed {
    std::string device = "auto";  ///< "cpu" or "cuda" once the run has begun
    int64_t threads_per_rank = 0;
    double collective_timeout_s = 60;  ///< 0: no heartbeat
    double heartbeat_s = 1;
    double straggler_warning_s = 5;
    double straggler_pace = 1.5;   ///< 0: slow ranks are not reported
    double work_timeout_s = 0;     ///< 0: as long as it takes
    double start_timeout_s = 120;  ///< 0: for ever
    int64_t digest_steps = 100;  ///< 0: never
  } distributed;
  struct Optimizer {
    std::string optimizer = "adamw";
    double learning_rate = 1e-4;
    std::optional<double> text_encoder_lr;    ///< absent: learning_rate
    double loraplus_lr_ratio = 1.0;           ///< up matrices' rate over the others'
    std::map<std::string, double> lr_pattern;  ///< layer pattern -> learning rate
    bool scale_lr = false;
    double adam_beta1 = 0.9, adam_beta2 = 0.999, adam_weight_decay = 1e-2, adam_epsilon = 1e-8;
    std::optional<double> adam_weight_decay_text_encoder;  ///< absent: adam_weight_decay
    std::optional<double> adam_weight_decay_magnitude;     ///< of DoRA's vectors; absent: as the others
    bool use_8bit_adam = false;                            ///< resolved into optimizer = "adamw8bit"
    std::optional<double> prodigy_beta3;                   ///< absent: sqrt(adam_beta2)
    bool prodigy_decouple = true, prodigy_use_bias_correction = true, prodigy_safeguard_warmup = true;
    double prodigy_d0 = 1e-6, prodigy_d_coef = 1.0;
    bool adafactor_scale_parameter = false, adafactor_relative_step = false, adafactor_warmup_init = false;
    double lion_beta1 = 0.9, lion_beta2 = 0.99;
  } optimizer;
  struct Ema {
    bool use_ema = false;
    double ema_decay = 0.9999, ema_min_decay = 0.0;
    int64_t ema_update_after_step = 0;
    bool use_ema_warmup = false;
    double ema_inv_gamma = 1.0, ema_power = 2.0 / 3.0;
  } ema;
  struct LrSchedule {
    std::string lr_scheduler = "constant";
    int64_t lr_warmup_steps = 0;
    int64_t lr_num_cycles = 1;
    double lr_power = 1.0;
    double lr_scheduler_min_lr_ratio = 0;
    int64_t lr_decay_steps = 0;
  } lr_scheduler;
  struct Checkpoint {
    int64_t checkpointing_steps = 500;
    int64_t checkpoints_total_limit = 0;            ///< 0: keep all
    std::string resume_from_checkpoint = "latest";  ///< "latest", "none" or a checkpoint folder
    bool resume_on_other_hardware = false;
    std::string on_disk_full = "stop";              ///< or "continue"
  } checkpoint;
  struct Validation {
    StringOrArray validation_prompt;
    std::string negative_prompt;
    int64_t num_validation_images = 4;
    std::optional<int64_t> validation_steps, validation_epochs;  ///< neither: each epoch, as the reference scripts
    bool at_start = false, at_end = true;
    double validation_split = 0;  ///< of the rows: held out
    std::optional<int64_t> validation_seed;  ///< absent: the run's seed
    int64_t num_inference_steps = 25;
    double guidance_scale = 7.5;
    std::string scheduler = "dpmsolver++";
    bool use_karras_sigmas = false;
    int64_t height = 0, width = 0;  ///< 0: what the base was made for
  } validation;
  struct Report {
    std::vector<std::string> report_to = {"tensorboard"};
    std::string logging_dir = "logs";
  } report;
  struct Debug {
    int64_t trace_steps = 0;
  } debug;
};

/// Reads `path`, applies `overrides` ("table.key=value", the value as TOML), checks every key and the rules between
/// keys. Throws Error(usage) with file, line and column, the nearest key for an unknown one, and what was expected.
Recipe load_recipe(const std::filesystem::path& path, const std::vector<std::string>& overrides = {});
Recipe parse_recipe(const std::string& toml_text, const std::string& name,
                    const std::vector<std::string>& overrides = {});

/// Fixes what depends on the start: total_batch_size from gradient_accumulation_steps and `world_size`, lora_alpha,
/// max_train_steps from num_train_epochs and the `images_per_epoch`, threads_per_rank. Idempotent. Throws Error(usage) where
/// they contradict each other.
void resolve_recipe(Recipe& recipe, int world_size, int local_world_size, int64_t images_per_epoch);

/// For a resume, before resolve_recipe: takes total_batch_size from the checkpoint's resolved recipe where `recipe`
/// gives gradient_accumulation_steps (or neither), so that other ranks keep step, learning rate and length. Does
/// nothing where `recipe` gives total_batch_size. Throws Error(usage) where no rank count makes the saved total out of
/// `recipe`'s values.
void keep_total_batch_size(Recipe& recipe, const Recipe& saved);

/// The whole recipe as TOML, every value in it, in the order of the field list: recipe.toml of a run directory.
std::string print_recipe(const Recipe& recipe);

/// "table.key" -> value as TOML, of the keys marked identity (they change the arithmetic); for resume and agreement
/// checks.
std::vector<std::pair<std::string, std::string>> identity_values(const Recipe& recipe);

/// docs/recipe_reference.md: every key with type, default, identity and meaning.
std::string recipe_reference_markdown();
/// The same for a terminal: all keys (`name` empty), one table, or one key ("lora.rank" or "rank"). Throws Error(usage)
/// naming the nearest key for an unknown one.
std::string recipe_help(const std::string& name);

}  // namespace lorashard
