// Keys of [train] and [distributed].
#include "trainer/recipe_checks.h"

namespace lorashard {

void add_train_fields(Fields& f, Recipe& r) {
  const std::string& schedule = r.lr_scheduler.lr_scheduler;
  const FieldIdentity with_schedule = {schedule != "constant" && schedule != "constant_with_warmup",
                                       "unless lr_scheduler is constant or constant_with_warmup"};
  const FieldIdentity with_fp16 = {r.train.mixed_precision == "fp16", "with mixed_precision = \"fp16\""};
  f.push_back({"train", "train_batch_size", &r.train.train_batch_size, between(1, 65536), kIdentity,
               "Images in a micro-batch: what one rank takes through the model at once."});
  f.push_back(
      {"train", "total_batch_size", &r.train.total_batch_size, between(1, kMostImages), kIdentity,
       "Images in an optimizer step, whatever the number of ranks; a multiple of train_batch_size. Absent: from "
       "gradient_accumulation_steps."});
  f.push_back({"train", "gradient_accumulation_steps", &r.train.gradient_accumulation_steps, between(1, kMostImages),
               kIdentity,
               "Instead of total_batch_size: total_batch_size = train_batch_size * this * ranks, fixed at the first "
               "start and kept "
               "when the run is resumed on other ranks. Absent, and no total_batch_size: 1."});
  f.push_back({"train", "max_train_steps", &r.train.max_train_steps, between(1, kMostSteps), with_schedule,
               "Optimizer steps of the whole run. This or num_train_epochs."});
  f.push_back({"train", "num_train_epochs", &r.train.num_train_epochs, between(1, kMostSteps), with_schedule,
               "Instead of max_train_steps: ceil(samples * this / total_batch_size) steps."});
  f.push_back(
      {"train", "mixed_precision", &r.train.mixed_precision, one_of({"no", "fp16", "bf16"}), kIdentity,
       "Type of the frozen base model and of the activations. The adapter is always fp32. \"fp16\" trains with a dynamic loss "
       "scale; on CPUs it is slow."});
  f.push_back({"train", "initial_loss_scale", &r.train.initial_loss_scale, power_of_two(int64_t{1} << 40), with_fp16,
               "With fp16: the loss is multiplied by this before backward and the gradients divided by it again. Halved after "
               "a step whose gradients were not finite, which is skipped."});
  f.push_back({"train", "loss_scale_growth_interval", &r.train.loss_scale_growth_interval, between(1, kMostSteps), with_fp16,
               "With fp16: so many steps without a skipped one double the loss scale."});
  f.push_back({"train", "gradient_checkpointing", &r.train.gradient_checkpointing, anything(), kFree,
               "Keep only the inputs of the model's blocks and compute them again in backward: a third more time, a fraction of the "
               "memory."});
  f.push_back({"train", "max_grad_norm", &r.train.max_grad_norm, at_least(0), kIdentity,
               "The gradient of a step is scaled down to this 2-norm when it is larger. 0: never."});
  f.push_back({"train", "snr_gamma", &r.train.snr_gamma, above_zero(), kIdentity,
               "Weigh each image's loss by min(SNR, this) over the SNR of its timestep (min-SNR, arXiv 2303.09556; 5.0 is "
               "usual). Absent: all alike."});
  f.push_back({"train", "noise_offset", &r.train.noise_offset, at_least(0), kIdentity,
               "Add this times one normal number for each channel of an image to the noise, so that brightness is learnt."});
  f.push_back({"train", "input_perturbation", &r.train.input_perturbation, at_least(0), kIdentity,
               "Add this times further noise to the UNet's input only (0.1 is usual; sd-scripts' ip_noise_gamma)."});
  f.push_back({"train", "do_edm_style_training", &r.train.do_edm_style_training, anything(), kIdentity,
               "Train on the latents that the UNet's prediction stands for, weighed by the noise (EDM, arXiv 2206.00364), as "
               "train_dreambooth_lora_sdxl.py does with an EulerDiscreteScheduler. Not with snr_gamma."});
  f.push_back({"train", "deterministic", &r.train.deterministic, anything(), kIdentity,
               "Sum gradients as integers, so that any number of ranks gives the same bits. false: sum in fp32."});
  f.push_back({"distributed", "device", &r.distributed.device, one_of({"auto", "cpu", "cuda"}),
               FieldIdentity{r.train.deterministic && r.distributed.device != "auto", "with deterministic = true"},
               "Where the ranks compute: \"cuda\" gives each rank a GPU of its own. \"auto\": cuda where every rank can have "
               "one, else cpu. A deterministic run goes on only on what it began on."});
  f.push_back({"distributed", "threads_per_rank", &r.distributed.threads_per_rank, between(0, 4096),
               FieldIdentity{r.train.deterministic, "with deterministic = true"},
               "Compute threads of each rank. 0: 1 with deterministic = true, else the cores divided by the ranks of "
               "the host."});

  f.push_back({"distributed", "collective_timeout_s", &r.distributed.collective_timeout_s, between(0, kMostSeconds), kFree,
               "Seconds after which a rank that sends no heartbeat is lost, and after which ranks that all wait for each "
               "other are stuck: the run ends with exit code 76. A rank that works is waited for. 0: no heartbeat."});
  f.push_back({"distributed", "heartbeat_s", &r.distributed.heartbeat_s, seconds_above_zero(), kFree,
               "Seconds between two heartbeats of a rank. At most a third of collective_timeout_s."});
  f.push_back({"distributed", "straggler_warning_s", &r.distributed.straggler_warning_s, seconds_above_zero(), kFree,
               "Seconds that the others wait for a rank before a warning names it."});
  f.push_back({"distributed", "straggler_pace", &r.distributed.straggler_pace, between(0, 1000), kFree,
               "A rank whose micro-batches take so many times as long as those of the others, over ten steps, is named in a "
               "warning. 0: never."});
  f.push_back({"distributed", "work_timeout_s", &r.distributed.work_timeout_s, between(0, kMostSeconds), kFree,
               "Seconds that the others wait for a rank that beats but doesn't come, as one whose disk never answers; then the run "
               "ends with exit code 76. 0: as long as it takes. More than a step, and than packing and loading, may take."});
  f.push_back({"distributed", "start_timeout_s", &r.distributed.start_timeout_s, between(0, kMostSeconds), kFree,
               "Seconds that a rank waits at the start until all ranks are there, else it ends with exit code 76. 0: for ever."});
  f.push_back({"distributed", "digest_steps", &r.distributed.digest_steps, between(0, kMostSteps), kFree,
               "Every so many steps the ranks compare hashes of the adapter's weights; a difference ends the run with exit "
               "code 70. 0: never."});
}

}  // namespace lorashard
