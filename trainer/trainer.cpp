#include "trainer/trainer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/ranges.h>

#include <chrono>

#include "dist/activity.h"
#include "dist/agreement.h"
#include "dist/compute_device.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/log.h"
#include "dist/machine.h"
#include "dist/stop_request.h"
#include "trainer/conditioning.h"
#include "trainer/diffusion_loss.h"
#include "trainer/export.h"
#include "trainer/held_out_loss.h"
#include "trainer/lora_setup.h"
#include "trainer/make_optimizer.h"
#include "trainer/model_card.h"
#include "trainer/preflight.h"
#include "trainer/step_update.h"
#include "trainer/weight_norms.h"
#include "trainer/weights_digest.h"

namespace lorashard {
namespace {

constexpr int64_t kMaxSkippedInARow = 8;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Trainer::~Trainer() = default;

void Trainer::train() {
  const auto start = std::chrono::steady_clock::now();
  const int64_t max_train_steps = *recipe_.train.max_train_steps;
  // Pictures of the base alone; or those in whose making the run was stopped that is now resumed.
  if (!validate()) throw stopped_on_request("before the first of its steps");
  while (global_step_ < max_train_steps) {
    // 1. One optimizer step, and the loss on the pictures that are held out.
    activity().step = global_step_ + 1;
    StepMetrics metrics = train_step(global_step_);
    ++global_step_;
    metrics.global_step = global_step_;
    metrics.val_loss = validation_loss();

    // 2. What one rank knows and all must act on: a request to stop, a write that failed.
    const auto any = any_rank(communicator_, {stop_requested(), checkpoint_writer_ && checkpoint_writer_->failed()});
    bool stop = any[0];
    const bool write_failed = any[1];
    const int64_t digest_steps = recipe_.distributed.digest_steps;
    if (digest_steps > 0 && global_step_ % digest_steps == 0) {
      require_same_weights(communicator_, adapter_.flat_parameters().cpu(), global_step_);
    }
    const bool last = stop || global_step_ == max_train_steps;

    // 3. For a checkpoint rank 0 copies the state; files are made of the copy in the background, after the step's metrics.
    const bool due = last || global_step_ % recipe_.checkpoint.checkpointing_steps == 0;
    if (due && checkpoint_writer_) {
      const auto timing = checkpoint_writer_->snapshot(state());
      metrics.checkpoint_wait_ms = timing.wait_ms;
      metrics.checkpoint_snapshot_ms = timing.snapshot_ms;
    }
    metrics.wall_s = seconds_since(start);
    if (metrics_) {
      checkpoint_writer_->guard([&] {
        lease_->require_held();
        metrics_->write(metrics);
      });
    }
    refuse_if_diverged();
    if (write_failed) finish_checkpoints();
    if (due && checkpoint_writer_) checkpoint_writer_->start();
    if (trace_->records(global_step_ - 1) && (last || !trace_->records(global_step_))) write_trace();

    // 4. Validation pictures. A request to stop ends them, and the run.
    if (!stop && !validate()) {
      stop = true;
      if (!due && checkpoint_writer_) {
        checkpoint_writer_->snapshot(state());
        checkpoint_writer_->start();
      }
      if (!last && trace_->records(global_step_)) write_trace();
    }

    // 5. A request to stop: every rank leaves once the checkpoint is there.
    if (stop && global_step_ < max_train_steps) {
      finish_checkpoints(/*must_be_written=*/true);
      throw stopped_on_request(fmt::format("after step {} of {}, with a checkpoint", global_step_, max_train_steps));
    }
  }
  finish_checkpoints();
  run_agreed(communicator_, "exporting the adapter", [&] {
    if (!is_main()) return;
    lease_->require_held();
    const at::Tensor exported = exported_parameters(state()).cpu();
    export_adapter(adapter_, exported, output_dir_);
    export_other_formats(adapter_, exported, base_, recipe_, output_dir_);
    const auto sheet = newest_sample_sheet(output_dir_);
    write_model_card(output_dir_, recipe_,
                     {.num_samples = num_samples_, .global_step = global_step_, .num_parameters = adapter_.num_parameters(),
                      .pack_hash = data_hash(*pack_, class_pack_.get()), .base_hash = base_hash_, .is_sdxl = base_.is_sdxl(),
                      .sample_sheet = sheet ? sheet->lexically_relative(output_dir_).generic_string() : ""});
  });
}

StepMetrics Trainer::train_step(int64_t step) {
  const auto start = std::chrono::steady_clock::now();
  StepMetrics metrics;
  metrics.loss_scale = loss_scale_.value();

  // 1. This rank's micro-batches. Each is a pure function of its number, whoever runs it.
  for (int64_t i = 0; i < micro_batches_per_step_; ++i) {
    const Batch batch = feed_->next();
    const LoraDropoutRows dropout_rows(dropout_rows_of(batch));
    metrics.data_wait_ms += batch.wait_ms;

    // 2. Pictures and captions to latents and text embeddings; noise; prediction; loss.
    const Conditioning conditioning = encode(base_, batch, recipe_.train.deterministic, recipe_.lora.train_text_encoder, texts_.get());
    const DiffusionLoss out = diffusion_loss(base_, conditioning, batch, loss_options_, recipe_.dreambooth.prior_loss_weight);

    // 3. Backward: gradients of the adapter alone, into its one flat tensor; then into the sum that order can't change. The loss
    // scale of fp16 is divided out there.
    adapter_.flat_gradients().zero_();
    (metrics.loss_scale == 1 ? out.loss : out.loss * metrics.loss_scale).backward();
    reduction_->add(adapter_.flat_gradients(), out.loss.detach(), metrics.loss_scale);
    feed_->prefetch();
    trace_->micro_batch(step, batch, conditioning, out);
  }
  activity().did_work(micro_batches_per_step_, seconds_since(start));

  const std::vector<double> lrs = learning_rates_of(recipe_, optimizer_->groups(), optimizer_->updates());
  metrics.lr = lrs.front();

  // 4. One message: the sum over all ranks, and with it whether any micro-batch was not finite. Every rank applies the same
  // update. A skipped step consumes its micro-batches and changes nothing but the loss scale.
  const StepUpdate update =
      reduce_and_update(*reduction_, communicator_, *optimizer_, lrs, recipe_.train.max_grad_norm,
                        [&](const at::Tensor& mean_gradient) { trace_->gradient(step, adapter_, mean_gradient); });
  metrics.loss = update.mean_loss;
  metrics.grad_norm = update.grad_norm;
  metrics.skipped = update.skipped;
  if (recipe_.lora.scale_weight_norms && !update.skipped) limit_weight_norms(adapter_, *recipe_.lora.scale_weight_norms);
  skipped_in_a_row_ = update.skipped ? skipped_in_a_row_ + 1 : 0;
  loss_scale_.update(update.skipped);
  if (ema_ && !update.skipped) ema_->step(adapter_.flat_parameters(), optimizer_->updates());
  trace_->update(step, adapter_, metrics.grad_norm, optimizer_->groups(), lrs);

  const double seconds = seconds_since(start);
  metrics.step_ms = seconds * 1e3;
  if (device_.is_cuda()) metrics.peak_device_memory_bytes = cuda_library().peak_memory_bytes(device_);
  metrics.images_per_second = static_cast<double>(*recipe_.train.total_batch_size) / seconds;
  metrics.world_size = communicator_.world().world_size;
  metrics.epoch =
      static_cast<double>((step + 1) * *recipe_.train.total_batch_size) / static_cast<double>(images_per_epoch_);
  return metrics;
}

std::optional<double> Trainer::validation_loss() {
  if (held_out_rows_.empty() || !validation_due(recipe_, images_per_epoch_, global_step_)) return std::nullopt;
  const AverageInPlace average(ema_.get(), adapter_.flat_parameters());  // of what is exported, as the pictures
  return held_out_loss(communicator_, base_, *pack_, loader_options(), held_out_rows_,
                       {.deterministic = recipe_.train.deterministic,
                        .do_edm_style_training = loss_options_.do_edm_style_training,
                        .texts = texts_.get()});
}

bool Trainer::validate() {
  if (!validation_ || !validation_->due(global_step_)) return true;
  const AverageInPlace average(ema_.get(), adapter_.flat_parameters());  // pictures of what is exported
  const int64_t resumed_at = resumed_ ? resumed_->global_step : -1;
  return validation_->run(
      global_step_, [this](const std::function<void()>& action) { checkpoint_writer_->guard(action); },
      [&](const std::string& png, bool is_new) {
        // TensorBoard keeps what came up to the step a run was resumed at.
        if (is_new || global_step_ > resumed_at) metrics_->picture("validation", global_step_, png);
      });
}

AgreedError Trainer::stopped_on_request(const std::string& where) const {
  return AgreedError(Error(ErrorKind::stopped, "stopped on request " + where, "start the same command again to go on"),
                     communicator_.world());
}

void Trainer::refuse_if_diverged() const {
  if (loss_scale_.exhausted()) {
    throw AgreedError(Error(ErrorKind::non_finite,
                            fmt::format("training: at step {} gradients overflow fp16 even with a loss scale of 1", global_step_),
                            "use mixed_precision = \"bf16\" or \"no\"; the checkpoints before are whole"),
                      communicator_.world());
  }
  if (skipped_in_a_row_ < kMaxSkippedInARow) return;
  throw AgreedError(Error(ErrorKind::non_finite,
                          fmt::format("training: the gradients of {} steps in a row, up to step {}, were not finite",
                                      skipped_in_a_row_, global_step_),
                          "lower learning_rate, or use mixed_precision = \"no\"; the checkpoints before are whole"),
                    communicator_.world());
}

const at::Tensor& Trainer::exported_parameters(const TrainingState& state) const {
  return ema_ ? state.parts.tensors.at("ema/parameters") : state.parameters;
}

TrainingState Trainer::state() const {
  TrainingState state;
  state.global_step = global_step_;
  state.updates = optimizer_->updates();
  state.skipped_in_a_row = skipped_in_a_row_;
  state.parameters = adapter_.flat_parameters();
  state.parts.add("optimizer", optimizer_->state());
  if (ema_) state.parts.add("ema", ema_->state());
  if (loss_scale_.dynamic()) state.parts.add("loss_scale", loss_scale_.state());
  return state;
}

void Trainer::make_checkpoint_writer() {
  TrainingState what = state();
  what.recipe = print_recipe(recipe_);
  what.pack_hash = data_hash(*pack_, class_pack_.get());
  what.base_hash = base_hash_;
  if (recipe_.train.deterministic) {
    what.arithmetic = describe_arithmetic_of(device_);
    what.program = describe_program();
  }
  for (const LoraParameter& p : adapter_.parameters()) {
    what.parameter_keys.push_back(fmt::format("{} {}", p.key, fmt::join(p.value.sizes(), "x")));
  }
  checkpoint_writer_ = std::make_unique<CheckpointWriter>(what, recipe_.checkpoint.on_disk_full == "continue",
                                                          [this](const TrainingState& copy) { save_checkpoint(copy); });
}

void Trainer::save_checkpoint(const TrainingState& state) {
  const auto start = std::chrono::steady_clock::now();
  lease_->require_held();
  metrics_->flush();  // the lines of a resumed run end where its checkpoint is
  const auto require_held = [this] { lease_->require_held(); };
  std::filesystem::path folder;
  try {
    folder = write_checkpoint(output_dir_, state, publishable(adapter_, exported_parameters(state)), adapter_metadata(), require_held);
    remove_old_checkpoints(output_dir_, recipe_.checkpoint.checkpoints_total_limit, folder, require_held);
  } catch (const Error&) {
    lease_->require_held();  // who took the run folder over discards what is unfinished: that is the reason then
    throw;
  }
  log::info("step {}: wrote '{}' ({:.1f} MB in {:.0f} ms)", state.global_step, folder.string(),
            static_cast<double>(checkpoint_bytes(folder)) / 1e6, seconds_since(start) * 1e3);
}

void Trainer::finish_checkpoints(bool must_be_written) {
  run_agreed(communicator_, "writing checkpoints", [&] {
    if (checkpoint_writer_) checkpoint_writer_->finish(must_be_written);
  });
}

void Trainer::write_trace() {
  const std::string name = resumed_ ? fmt::format("trace-{}.safetensors", trace_->first_step()) : "trace.safetensors";
  trace_->write(output_dir_ / name, adapter_, communicator_);
}

}  // namespace lorashard
