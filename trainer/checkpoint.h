// checkpoint-N/: the state of a run (design: parameters, optimizer, counters, recipe, hashes), in one folder that appears by one
// rename, with a manifest of sizes and SHA-256. docs/checkpoint_format.md has it byte by byte.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "models/safetensors.h"
#include "trainer/named_state.h"

namespace lorashard {

struct TrainingState {
  int64_t global_step = 0;  ///< optimizer steps consumed, skipped ones included
  int64_t updates = 0;      ///< updates applied
  int64_t skipped_in_a_row = 0;
  at::Tensor parameters;  ///< fp32 [P], flat
  NamedState parts;       ///< of "optimizer", "ema", "loss_scale": "optimizer/exp_avg"
  std::string recipe;     ///< resolved recipe as TOML
  std::string pack_hash, base_hash;
  std::string arithmetic = {};  ///< describe_arithmetic_of() the device of who wrote it; empty where bits don't matter, or unknown
  std::string program = {};     ///< describe_program() of who wrote it; empty in the same cases
  std::vector<std::string> parameter_keys;  ///< adapter key of each tensor in flat order, "key shape" a line
};

/// Writes output_dir/checkpoint-{global_step}: all files into a temporary folder, each fsynced, manifest last, then one rename and
/// fsync of output_dir. A checkpoint of that step that is there already is replaced. `adapter` is the exported file beside the state.
/// Called by one rank. Throws Error(io), also where `before_publishing`, called right before the rename, throws an Error of kind io or
/// usage; nothing is left behind then.
std::filesystem::path write_checkpoint(const std::filesystem::path& output_dir, const TrainingState& state, const StateDict& adapter,
                                       const Metadata& adapter_metadata, const std::function<void()>& before_publishing = {});

/// Removes temporary folders: what a killed run left, and what one that lives is writing, which can't publish it any more. For a start
/// that has just taken the run folder.
void discard_unfinished_checkpoints(const std::filesystem::path& output_dir);

/// Bytes of all files of a checkpoint, for the log.
uint64_t checkpoint_bytes(const std::filesystem::path& folder);

/// Checks manifest, sizes and hashes, then reads. Throws Error(bad_data) naming the file that is wrong.
TrainingState read_checkpoint(const std::filesystem::path& folder);

/// The newest checkpoint-N of output_dir that is whole; broken ones are named in the log. By a scan, newest first. Throws
/// Error(bad_data) for one of an older version.
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& output_dir);

/// Removes the oldest beyond `limit` (0: none), never `just_written`. This is re-read and verified first; when it is broken nothing is
/// removed and Error(io) is thrown. What `before_removing`, called in between, throws goes through.
void remove_old_checkpoints(const std::filesystem::path& output_dir, int64_t limit, const std::filesystem::path& just_written,
                            const std::function<void()>& before_removing = {});

}  // namespace lorashard
