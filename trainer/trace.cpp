#include "trainer/trace.h"

#include <ATen/ATen.h>

#include "dist/agreement.h"
#include "dist/error.h"

namespace lorashard {
namespace {

std::filesystem::path part_of(const std::filesystem::path& path, int process) {
  return path.string() + fmt::format(".part{}", process);
}

}  // namespace

Trace::Trace(int64_t first_step, int64_t trace_steps) : first_step_(first_step), trace_steps_(trace_steps) {}

void Trace::record(const std::string& name, const at::Tensor& value) {
  if (!value.defined()) return;
  const at::Tensor kept = at::isFloatingType(value.scalar_type()) ? value.detach().to(at::kFloat) : value.detach();
  tensors_[name] = kept.to(at::kCPU).clone(at::MemoryFormat::Contiguous);
}

void Trace::init(const LoraAdapter& adapter) {
  if (trace_steps_ == 0) return;
  for (const LoraParameter& p : adapter.parameters()) record("init/" + p.key, p.value);
}

void Trace::micro_batch(int64_t step, const Batch& batch, const Conditioning& conditioning, const DiffusionLoss& out) {
  if (!records(step)) return;
  const std::string at_micro = fmt::format("step{}/micro{}/", step, batch.micro_batch);
  record(at_micro + "sample_ids", at::tensor(batch.sample_ids, at::kLong));
  if (!batch.class_sample_ids.empty()) {
    record(at_micro + "class_sample_ids", at::tensor(batch.class_sample_ids, at::kLong));
  }
  record(at_micro + "pixel_values", batch.pixel_values);
  record(at_micro + "input_ids", batch.input_ids);
  record(at_micro + "input_ids_2", batch.input_ids_2);
  record(at_micro + "latents", conditioning.latents);
  record(at_micro + "noise", out.noise);
  record(at_micro + "timesteps", batch.timesteps);
  record(at_micro + "noisy_latents", out.noisy_latents);
  record(at_micro + "encoder_hidden_states", conditioning.encoder_hidden_states);
  record(at_micro + "pooled_prompt_embeds", conditioning.pooled_prompt_embeds);
  record(at_micro + "add_time_ids", conditioning.add_time_ids);
  record(at_micro + "target", out.target);
  record(at_micro + "model_pred", out.model_pred);
  record(at_micro + "instance_loss", out.instance_loss);
  record(at_micro + "prior_loss", out.prior_loss);
  record(at_micro + "loss", out.loss);
  record(at_micro + "weights", out.weights);
  record(at_micro + "loss_mask", batch.loss_mask);
  record(at_micro + "loss_weights", batch.loss_weights);
  record(at_micro + "image_losses", out.image_losses);
}

void Trace::gradient(int64_t step, const LoraAdapter& adapter, const at::Tensor& mean_gradient) {
  if (!records(step)) return;
  for (const LoraParameter& p : adapter.parameters()) {
    const at::Tensor part = mean_gradient.narrow(0, p.value.storage_offset(), p.value.numel());
    record(fmt::format("step{}/grad/{}", step, p.key), part.view(p.value.sizes()));
  }
}

void Trace::update(int64_t step, const LoraAdapter& adapter, double grad_norm, const std::vector<ParameterGroup>& groups,
                   const std::vector<double>& lrs) {
  if (!records(step)) return;
  record(fmt::format("step{}/grad_norm", step), at::scalar_tensor(grad_norm, at::kFloat));
  record(fmt::format("step{}/lr", step), at::scalar_tensor(lrs.front(), at::kFloat));
  for (size_t i = 0; groups.size() > 1 && i < groups.size(); ++i) {
    record(fmt::format("step{}/lr/{}", step, groups[i].name), at::scalar_tensor(lrs[i], at::kFloat));
  }
  for (const LoraParameter& p : adapter.parameters()) record(fmt::format("step{}/param/{}", step, p.key), p.value);
}

void Trace::write(const std::filesystem::path& path, const LoraAdapter& adapter, Communicator& communicator) {
  const World& world = communicator.world();
  // Through the output folder, which every rank sees, rather than through messages: a trace of a full-size model is gigabytes.
  run_agreed(communicator, "writing the ranks' parts of the trace", [&] {
    if (world.rank != 0) write_safetensors(part_of(path, world.rank), tensors_);
  });
  run_agreed(communicator, "gathering the trace", [&] {
    if (world.rank != 0) return;
    for (int other = 1; other < world.world_size; ++other) {
      tensors_.merge(SafetensorsFile(part_of(path, other)).tensors());
    }
    Metadata scales;
    for (const LoraParameter& p : adapter.parameters()) scales[p.key] = fmt::format("{}", adapter.modules()[p.module].scale);
    write_safetensors(path, tensors_, scales);
    for (int other = 1; other < world.world_size; ++other) std::filesystem::remove(part_of(path, other));
  });
  tensors_.clear();
}

}  // namespace lorashard
