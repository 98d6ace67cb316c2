// checkpoint_fault_probe calls RUN_DIR, under LD_PRELOAD of tests/faults/fault_shim.c: writes checkpoint after
// checkpoint, each in a child process where one call fails: every kind of call, every error it may give, its first,
// second, ... occurrence until there are no more. After each: the newest whole checkpoint is the old one or the new
// one, its values are right, nothing is left behind, and an error named the path. Prints points and failures per kind;
// exit code 1 and a line per fault of ours.
//
// checkpoint_fault_probe damage RUN_DIR TRIALS SEED: a file of the newest checkpoint is removed, cut, or has one bit
// flipped, again and again; each must be found, and the checkpoint before taken.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "dist/error.h"
#include "trainer/checkpoint.h"

namespace fs = std::filesystem;
using lorashard::TrainingState;

namespace {

using Arm = void (*)(const char*, const char*, long, long, const char*);
using Count = long (*)();

struct Case {
  const char *call, *error;
  long times;      // occurrences that fail from the k-th on; 0: all
  bool must_work;  // short writes and EINTR are no errors
};
constexpr Case kCases[] = {
    {"write", "EIO", 1, false},
    {"write", "ENOSPC", 0, false},
    {"write", "short", 0, true},
    {"write", "EINTR", 1, true},
    {"fsync", "EIO", 1, false},
    {"fsync", "ENOSPC", 0, false},
    {"fsync", "EINTR", 1, true},
    {"close", "EIO", 1, false},
    {"close", "ENOSPC", 0, false},
    {"rename", "EIO", 1, false},
    {"rename", "ENOSPC", 0, false},
    {"mkdir", "EIO", 1, false},
    {"create", "EIO", 1, false},
    {"create", "ENOSPC", 0, false},
    {"create", "EINTR", 1, true},
    {"open", "EIO", 1, false},
    {"open", "EINTR", 1, true},
    {"read", "EIO", 1, false},
    {"read", "EINTR", 1, true},
    {"write", "EIO", 0, false},
    {"fsync", "EIO", 0, false},
    {"close", "EIO", 0, false},
    {"rename", "EIO", 0, false},
    {"create", "EIO", 0, false},
    {"open", "EIO", 0, false},
    {"read", "EIO", 0, false},
    // A file system without RENAME_EXCHANGE (NFS), and one where it fails.
    {"exchange", "EINVAL", 1, true},
    {"exchange", "EIO", 1, false},
};

TrainingState state_of(int64_t step) {
  TrainingState state;
  state.global_step = state.updates = step;
  state.parameters = at::arange(5000, at::kFloat) + static_cast<double>(step);
  state.parts.tensors["optimizer/exp_avg"] = state.parameters * 0.5;
  state.parts.tensors["optimizer/exp_avg_sq"] = state.parameters * 0.25;
  state.recipe = "seed = 1337\n";
  return state;
}

/// 0: written, verified. 3: an Error that names the path. 4: any other end.
int write_one(const fs::path& run, int64_t step) {
  try {
    const TrainingState state = state_of(step);
    lorashard::remove_old_checkpoints(run, 3, lorashard::write_checkpoint(run, state, {{"a", state.parameters}}, {}));
    return 0;
  } catch (const lorashard::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    const bool named = error.message().find("checkpoint-" + std::to_string(step)) != std::string::npos;
    return named && error.kind() == lorashard::ErrorKind::io ? 3 : 4;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "not ours: %s\n", error.what());
    return 4;
  }
}

bool holds(const fs::path& folder, int64_t step) {
  const TrainingState found = lorashard::read_checkpoint(folder), expected = state_of(step);
  for (const auto& [name, tensor] : expected.parts.tensors)
    if (!found.parts.tensors.contains(name) || !at::equal(found.parts.tensors.at(name), tensor)) return false;
  return found.global_step == step && at::equal(found.parameters, expected.parameters);
}

int faults_of_ours = 0;
void expect(bool good, const Case& fault, long k, const std::string& what) {
  if (good) return;
  ++faults_of_ours;
  std::printf("FAULT: %s %s, call %ld: %s\n", fault.call, fault.error, k, what.c_str());
}

/// One point; false once there is no k-th call any more.
bool try_point(const fs::path& run, const Case& fault, long k, bool replacing, Arm arm, Count fired, long& failed) {
  fs::remove_all(run);
  fs::create_directories(run);
  write_one(run, 1);
  if (replacing) write_one(run, 2);
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    arm(fault.call, fault.error, k, fault.times, "checkpoint-2");
    const int result = write_one(run, 2);
    _exit(fired() == 0 ? 5 : result);
  }
  int status = 0;
  waitpid(child, &status, 0);
  const int result = WIFEXITED(status) ? WEXITSTATUS(status) : 100;
  if (result == 5) return false;
  failed += result == 3;
  expect(result == 0 || result == 3, fault, k, "ended with " + std::to_string(result));
  expect(!fault.must_work || result == 0, fault, k, "is no error, and was one");
  const auto newest = lorashard::newest_checkpoint(run);
  expect(newest.has_value(), fault, k, "no whole checkpoint");
  if (newest) {
    const bool second = *newest == run / "checkpoint-2";
    expect(holds(*newest, second ? 2 : 1), fault, k, "wrong values in " + newest->string());
    expect(second || (result != 0 && !replacing), fault, k, "the newest is " + newest->string());
  }
  expect(holds(run / "checkpoint-1", 1), fault, k, "the old one is gone");
  for (const auto& entry : fs::directory_iterator(run)) {
    const std::string name = entry.path().filename().string();
    expect(name == "checkpoint-1" || name == "checkpoint-2", fault, k, "left behind: " + name);
  }
  return true;
}

std::string content(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

int damage(const fs::path& run, int trials, uint64_t seed) {
  std::mt19937_64 random(seed);
  const fs::path newest = lorashard::newest_checkpoint(run).value();
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(newest)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  fs::path before;
  int done[3] = {};
  for (int trial = 0; trial < trials; ++trial) {
    const fs::path& file = files[random() % files.size()];
    const std::string whole = content(file);
    std::string bytes = whole;
    const int kind = trial % 3;
    if (kind == 0) fs::remove(file);
    if (kind == 1) bytes.resize(random() % bytes.size());
    if (kind == 2) bytes[random() % bytes.size()] ^= static_cast<char>(1 << random() % 8);
    if (kind != 0) std::ofstream(file, std::ios::binary) << bytes;
    const auto found = lorashard::newest_checkpoint(run);
    const bool good = found && *found != newest && (before.empty() || *found == before);
    if (!good) std::printf("FAULT: trial %d, kind %d, '%s'\n", trial, kind, file.c_str());
    if (good) before = *found;
    done[kind] += good;
    std::ofstream(file, std::ios::binary) << whole;
  }
  std::printf("found: %d removals, %d truncations, %d bit flips, of %d\n", done[0], done[1], done[2], trials);
  return done[0] + done[1] + done[2] == trials && lorashard::newest_checkpoint(run) == newest ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 5 && std::string(argv[1]) == "damage")
    return damage(argv[2], std::atoi(argv[3]), std::strtoull(argv[4], nullptr, 10));
  const auto arm = reinterpret_cast<Arm>(dlsym(RTLD_DEFAULT, "fault_arm"));
  const auto fired = reinterpret_cast<Count>(dlsym(RTLD_DEFAULT, "fault_fired"));
  if (argc != 3 || std::string(argv[1]) != "calls" || !arm || !fired) {
    std::fprintf(stderr, "usage: LD_PRELOAD=fault_shim.so checkpoint_fault_probe calls RUN_DIR\n");
    return 2;
  }
  at::set_num_threads(1);  // children that were forked have no thread pool
  for (const bool replacing : {false, true}) {
    for (const Case& fault : kCases) {
      long points = 0, failed = 0;
      while (points < 1000 && try_point(argv[2], fault, points + 1, replacing, arm, fired, failed)) ++points;
      std::printf("%s %s%s: %ld points, %ld failed\n", fault.call, fault.error, replacing ? " (replacing)" : "", points,
                  failed);
    }
  }
  return faults_of_ours == 0 ? 0 : 1;
}
