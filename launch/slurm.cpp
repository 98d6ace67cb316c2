#include "launch/slurm.h"

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <optional>
#include <sstream>

#include "dist/error.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr const char* kHead = R"(#!/bin/bash
# A lorashard training job that may be preempted, lose a node, reach its time limit: it queues itself again, goes on from its newest
# checkpoint, and stops when the adapter is written. Made by: lorashard launch --slurm. Edit it as you like; submit it by: sbatch FILE
# Other --nodes or --ntasks-per-node, even between two starts, change no bit of the adapter, on nodes of one kind (--constraint): a
# deterministic run that began on another kind of processor or GPU is refused.
#
)";

constexpr const char* kAboutSignal =
    R"(# So many seconds before the limit, Slurm sends USR1 to this shell alone (B:), at times a minute early. It has to be
# enough for a step and a checkpoint. Where the cluster has preempt_send_user_signal, preemption does the same.
)";

constexpr const char* kAboutRequeue = R"(# Slurm too may queue the job again: after preemption, or when a node fails.
#SBATCH --requeue
# One log through all starts: without this each would empty it. The folder has to exist before sbatch.
#SBATCH --open-mode=append
)";

constexpr const char* kBody = R"sh(
say() { echo "slurm job $SLURM_JOB_ID: $*" >&2; }

# USR1: the ranks answer it with a checkpoint and exit code 75. TERM comes when Slurm ends the job (preemption, scontrol requeue,
# scancel, the time limit) and reaches the ranks without our help: this shell only has to outlive them.
stopping="" srun_pid=""
trap 'stopping=USR1; [ -z "$srun_pid" ] || kill -USR1 "$srun_pid" 2>/dev/null' USR1
trap 'stopping=TERM' TERM

# How far the run is: the newest checkpoint's step or, where that is more, the last one of metrics.jsonl.
last_step() {
  {
    echo 0
    for folder in "$output_dir"/checkpoint-*; do echo "${folder##*-}"; done | grep -x '[0-9]\{1,\}'
    tail -n 1 "$output_dir/metrics.jsonl" | sed -n 's/.*"global_step": *\([0-9]\{1,\}\).*/\1/p'
  } 2>/dev/null | sort -n | tail -n 1
}

# Starts in a row that came no further than one before ($stuck), and how far that was ($reached): kept in a file, since every
# start is a new shell.
progress=$output_dir/slurm-$SLURM_JOB_ID.progress
adapter=$output_dir/pytorch_lora_weights.safetensors
now=$(last_step)
reached="" stuck=""
[ -e "$progress" ] && read -r reached stuck <"$progress"
if ! [[ "$reached $stuck" =~ ^[0-9]+\ [0-9]+$ ]] || [ "$now" -gt "$reached" ]; then
  reached=$now stuck=0
else
  stuck=$((stuck + 1))
fi
echo "$reached $stuck" >"$progress"
ranks=$((SLURM_JOB_NUM_NODES * SLURM_NTASKS_PER_NODE)) # of this start: scontrol update may have changed the nodes
say "start $((${SLURM_RESTART_COUNT:-0} + 1)), $ranks ranks on $SLURM_JOB_NODELIST, from step $now"

# --mpi=pmix: the ranks find each other. --kill-on-bad-exit: when one is lost the others end too; by default they would wait for
# it for ever. --cpus-per-task: since 22.05 srun does not take it from the lines above.
run_ranks() {
  srun --ntasks="$ranks" --mpi=pmix --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" "${train[@]}" &
  srun_pid=$!
  # A trapped signal ends wait early; srun is gone when kill finds nobody. It may pass a signal on to ranks that are not there yet,
  # so they get it until they answer.
  while kill -0 "$srun_pid" 2>/dev/null; do
    if [ "$stopping" = USR1 ]; then
      kill -USR1 "$srun_pid" 2>/dev/null
      sleep 1
    else
      wait "$srun_pid"
    fi
  done
  wait "$srun_pid"
  code=$?
  srun_pid=""
  [ "$stopping" = USR1 ] && [ $code -eq 138 ] && code=75 # USR1 came before the ranks were ready for it
  # srun can end with 0 though the ranks never ran (a launch that failed and then timed out): done is what wrote the adapter.
  [ $code -eq 0 ] && ! [ "$adapter" -nt "$progress" ] && code=76
}
run_ranks
case $code in
  0 | 2 | 65 | 70 | 74 | 75 | 77) ;;
  *)
    # Lost before the first step? Once more at once, as the next step of this allocation: a node that lost its power keeps
    # files of this step's number, and PMIx stumbles over them ("Address already in use").
    if [ -z "$stopping" ] && [ "$(last_step)" -le "$now" ]; then
      say "no step done (exit code $code): trying once more in this allocation"
      run_ranks
    fi
    ;;
esac

# Where this job is now, by Slurm; a controller that is busy is asked again.
state="" restarts="" reason=""
for _ in 1 2 3 4 5; do
  read -r state restarts reason < <(squeue --noheader --jobs="$SLURM_JOB_ID" --Format=State:20,RestartCnt:10,Reason:60) && break
  sleep 2
done
# Slurm took this start for lost, as when its slurmd died, and has begun the next one: that is none of our business.
# (The count alone goes up as soon as this start is to end.)
if [[ "$restarts" =~ ^[0-9]+$ ]] && [ "$restarts" -ne "${SLURM_RESTART_COUNT:-0}" ] && [[ "$state" =~ ^(RUNNING|CONFIGURING)$ ]]; then
  say "a later start of this job has taken over; this one (exit code $code) leaves it alone"
  exit $code
fi

end_job() {
  rm -f "$progress"
  say "ends with exit code $code: $*"
  exit $code
}
case $code in
  0) end_job "the adapter is in $output_dir" ;;
  2 | 65 | 70 | 74 | 77) end_job "another start would end the same; the reason is above" ;;
  75) why="stopped on request" ;;
  *) why="a rank or a node was lost (exit code $code)" ;;
esac

# Who ended it? Slurm (then it has queued the job already, or was told to cancel it), or the time limit, or nobody but the ranks: then
# queueing it again is our turn.
now=$(last_step)
[ -n "$state" ] || [ "$stopping" = TERM ] || state=RUNNING # no answer
if [ "$state" != RUNNING ] && [ "$reason" != TimeLimit ]; then
  say "$why, at step $now; it is Slurm that ends this start ($state)"
  exit $code
fi
if [ "$now" -le "$reached" ] && [ "$stuck" -ge "$max_requeues" ]; then
  end_job "$why, and $stuck requeues made no progress beyond step $reached"
fi
say "$why, at step $now; queued again"
trap '' TERM # requeue ends this start, and with it this shell
for _ in 1 2 3; do
  scontrol requeue "$SLURM_JOB_ID" && exit $code
  sleep 5
done
say "scontrol requeue failed: submit the script again to go on"
exit $code
)sh";

std::string shell_quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

// sbatch reads its lines much as a shell does; in file names % begins a pattern.
std::string sbatch_quoted(const std::string& text) {
  if (text.find_first_of(" \t'#") == std::string::npos) return text;
  return '"' + text + '"';
}

std::string percent_escaped(const std::string& path) {
  std::string escaped;
  for (const char c : path) escaped += c == '%' ? std::string("%%") : std::string(1, c);
  return escaped;
}

void refuse_unwritable(const std::string& name, const std::string& value) {
  if (value.find_first_of("\n\r\"\\") == std::string::npos) return;
  throw Error(
      ErrorKind::usage,
      fmt::format(
          "writing the batch script: {} '{}' has a line break, a double quote or a backslash, which Slurm does not "
          "take",
          name, value));
}

// "minutes", "minutes:seconds", "hours:minutes:seconds", "days-hours[:minutes[:seconds]]" (man sbatch); none for
// anything else.
std::optional<int64_t> seconds_of(const std::string& time) {
  const size_t dash = time.find('-');
  std::vector<int64_t> fields;
  std::istringstream rest(dash == std::string::npos ? time : time.substr(dash + 1));
  const auto number = [](const std::string& text) -> std::optional<int64_t> {
    if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos)
      return std::nullopt;
    return std::stoll(text);
  };
  for (std::string field; std::getline(rest, field, ':');) {
    const auto value = number(field);
    if (!value) return std::nullopt;
    fields.push_back(*value);
  }
  if (fields.empty() || fields.size() > 3 || time.back() == ':') return std::nullopt;
  if (dash != std::string::npos) {
    const auto days = number(time.substr(0, dash));
    if (!days) return std::nullopt;
    fields.resize(3);
    return ((*days * 24 + fields[0]) * 60 + fields[1]) * 60 + fields[2];
  }
  if (fields.size() == 1) return fields[0] * 60;
  if (fields.size() == 2) return fields[0] * 60 + fields[1];
  return (fields[0] * 60 + fields[1]) * 60 + fields[2];
}

void check(const SlurmJob& job) {
  for (const auto& [name, value] :
       std::initializer_list<std::pair<const char*, std::string>>{{"output_dir", job.output_dir},
                                                                  {"the working folder", job.working_dir},
                                                                  {"--time", job.time},
                                                                  {"--partition", job.partition},
                                                                  {"--account", job.account},
                                                                  {"--job-name", job.job_name}}) {
    refuse_unwritable(name, value);
  }
  for (const std::string& option : job.more_options) {
    refuse_unwritable("--sbatch", option);
    if (!option.starts_with("-"))
      throw Error(ErrorKind::usage, fmt::format("--sbatch '{}' is no option of sbatch", option),
                  "as in --sbatch=--constraint=a100");
  }
  if (job.time.empty()) return;
  const auto limit = seconds_of(job.time);
  if (!limit)
    throw Error(ErrorKind::usage, fmt::format("--time '{}' is no time that Slurm takes", job.time),
                "1:30:00 is an hour and a half, 1-12 a day and a half");
  if (*limit <= job.signal_before) {
    throw Error(ErrorKind::usage,
                fmt::format("--time {} is {} s and --signal-before {} s: nothing is left to train", job.time, *limit,
                            job.signal_before),
                "give more --time or less --signal-before");
  }
}

// sbatch's output; nothing when it failed (it has said why on stderr).
std::optional<std::string> output_of(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) throw errno_error("running sbatch");
  std::string output;
  std::array<char, 256> buffer;
  while (fgets(buffer.data(), buffer.size(), pipe) != nullptr) output += buffer.data();
  const int status = pclose(pipe);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
    throw Error(ErrorKind::usage, "submitting the job: there is no sbatch here",
                "run this where Slurm's commands are, or look at the script with --print");
  }
  return status == 0 ? std::optional(output) : std::nullopt;
}

}  // namespace

std::string batch_script(const SlurmJob& job) {
  check(job);
  std::string script = kHead;
  const auto option = [&](const std::string& name, const std::string& value) {
    if (!value.empty()) script += fmt::format("#SBATCH --{}={}\n", name, sbatch_quoted(value));
  };
  option("job-name", job.job_name);
  option("nodes", std::to_string(job.nodes));
  option("ntasks-per-node", std::to_string(job.ranks_per_node));
  option("cpus-per-task", std::to_string(job.cpus_per_rank));
  if (job.gpus_per_node > 0) option("gpus-per-node", std::to_string(job.gpus_per_node));
  option("time", job.time);
  option("partition", job.partition);
  option("account", job.account);
  for (const std::string& more : job.more_options) script += fmt::format("#SBATCH {}\n", sbatch_quoted(more));
  script += kAboutSignal;
  option("signal", fmt::format("B:USR1@{}", job.signal_before));
  script += kAboutRequeue;
  option("output", percent_escaped(job.output_dir) + "/slurm-%j.log");
  option("chdir", job.working_dir);

  script += fmt::format("\noutput_dir={}\nmax_requeues={} # without progress, in a row\n", shell_quoted(job.output_dir),
                        job.max_requeues);
  script += fmt::format("train=({} train {}", shell_quoted(job.program), shell_quoted(job.recipe));
  for (const std::string& set : job.overrides) script += " --set " + shell_quoted(set);
  return script + ")\n" + kBody;
}

std::string submit(const SlurmJob& job) {
  const std::string script = batch_script(job);
  const fs::path file = job.output_dir / "job.sbatch";
  std::error_code failed;
  fs::create_directories(job.output_dir, failed);
  std::ofstream(file) << script << std::flush;
  std::stringstream written;
  written << std::ifstream(file).rdbuf();
  if (failed || written.str() != script)
    throw Error(ErrorKind::io, fmt::format("writing the batch script '{}' failed", file.string()));
  const auto output = output_of("sbatch --parsable " + shell_quoted(file));
  if (!output || output->empty()) {
    throw Error(ErrorKind::usage, fmt::format("submitting '{}': sbatch refused it", file.string()),
                "sbatch's own line is above");
  }
  return output->substr(0, output->find_first_of(";\n"));  // "id" or "id;cluster"
}

}  // namespace lorashard
