// The batch script of `lorashard launch --slurm`: readable, editable, and able to queue itself again until the adapter
// is there.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

namespace lorashard {

struct SlurmJob {
  std::string program, recipe;  ///< absolute paths
  std::vector<std::string> overrides;
  std::filesystem::path working_dir, output_dir;  ///< absolute
  std::string job_name, time;
  std::string partition, account;         ///< empty: the cluster's default
  std::vector<std::string> more_options;  ///< "--constraint=a100": as sbatch takes them
  int nodes = 1, ranks_per_node = 1, cpus_per_rank = 1;
  int gpus_per_node = 0;  ///< 0: none asked for
  int signal_before = 120;
  int max_requeues = 3;
};

/// The script as text. Throws Error(usage) for values that no script can carry, or a time that leaves nothing before
/// the signal.
std::string batch_script(const SlurmJob& job);

/// Makes output_dir, writes the script into it and submits it; returns the job id. Throws Error(usage) when there is no
/// sbatch or it refuses the job (it has said why).
std::string submit(const SlurmJob& job);

}  // namespace lorashard
