// Keys of [checkpoint], [report] and [debug].
#include "trainer/recipe_checks.h"

namespace lorashard {

void add_run_fields(Fields& f, Recipe& r) {
  f.push_back({"checkpoint", "checkpointing_steps", &r.checkpoint.checkpointing_steps, between(1, kMostSteps), kFree,
               "Optimizer steps between checkpoints."});
  f.push_back({"checkpoint", "checkpoints_total_limit", &r.checkpoint.checkpoints_total_limit, at_least(0), kFree,
               "Keep only so many of the newest checkpoints. 0: keep all."});
  f.push_back({"checkpoint", "resume_from_checkpoint", &r.checkpoint.resume_from_checkpoint, not_empty(), kFree,
               "\"latest\": go on from the newest whole checkpoint of output_dir, or start where there is none. "
               "\"none\": start "
               "anew; refused where output_dir holds checkpoints. Else a checkpoint folder."});
  f.push_back({"checkpoint", "resume_on_other_hardware", &r.checkpoint.resume_on_other_hardware, anything(), kFree,
               "With deterministic = true a run that began on another kind of processor or GPU is refused, since its bits would change. true: "
               "it goes on, with a warning."});
  f.push_back({"checkpoint", "on_disk_full", &r.checkpoint.on_disk_full, one_of({"stop", "continue"}), kFree,
               "When there is no room for a checkpoint or a line of metrics. \"stop\": end with exit code 74. "
               "\"continue\": log an error and train on; the checkpoint before stays, and the next one is tried."});
  f.push_back({"report", "report_to", &r.report.report_to, one_of({"tensorboard"}), kFree,
               "Where metrics go besides metrics.jsonl. []: nowhere."});
  f.push_back({"report", "logging_dir", &r.report.logging_dir, not_empty(), kFree,
               "Folder of TensorBoard's event files, inside output_dir."});
  f.push_back({"debug", "trace_steps", &r.debug.trace_steps, at_least(0), kFree,
               "Write every tensor of the first so many steps to trace.safetensors. 0: none."});
}

}  // namespace lorashard
