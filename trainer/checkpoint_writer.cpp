#include "trainer/checkpoint_writer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <chrono>
#include <system_error>
#include <utility>

#include "dist/log.h"

namespace lorashard {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// Runs `action`; the Error it ended with, whatever it threw.
std::optional<Error> outcome_of(const std::function<void()>& action) {
  try {
    action();
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  } catch (const std::exception& error) {
    return Error(ErrorKind::internal, fmt::format("writing a checkpoint: {}", error.what()));
  }
}

}  // namespace

CheckpointWriter::CheckpointWriter(const TrainingState& state, bool on_disk_full_continue, Write write)
    : write_(std::move(write)), on_disk_full_continue_(on_disk_full_continue), snapshot_(state) {
  // Zeros are written, not only reserved: the first snapshot shall not pay for getting its pages.
  const auto room_for = [](at::Tensor& tensor) {
    tensor = at::empty(tensor.sizes(), at::TensorOptions(tensor.scalar_type())).zero_();
  };
  room_for(snapshot_.parameters);
  for (auto& [name, tensor] : snapshot_.parts.tensors) room_for(tensor);
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error& error) {
    throw Error(ErrorKind::io, fmt::format("starting the thread that writes checkpoints: {}", error.what()),
                "the system allows no more threads or memory: see ulimit -u, ulimit -v and the job's limits");
  }
}

CheckpointWriter::~CheckpointWriter() {
  {
    std::unique_lock lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  thread_.join();
  if (error_) log::error("{}", error_->what());
}

CheckpointWriter::Timing CheckpointWriter::snapshot(const TrainingState& now) {
  Timing timing;
  const auto start = Clock::now();
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !writing_; });
  }
  timing.wait_ms = ms_since(start);
  const auto copying = Clock::now();
  copy(now);
  timing.snapshot_ms = ms_since(copying);
  return timing;
}

void CheckpointWriter::copy(const TrainingState& now) {
  const at::NoGradGuard no_grad;
  snapshot_.global_step = now.global_step;
  snapshot_.updates = now.updates;
  snapshot_.skipped_in_a_row = now.skipped_in_a_row;
  snapshot_.parameters.copy_(now.parameters);
  copy_tensors(now.parts.tensors, snapshot_.parts.tensors);
  snapshot_.parts.scalars = now.parts.scalars;
}

void CheckpointWriter::start() {
  const std::lock_guard lock(mutex_);
  LORASHARD_CHECK(!writing_, "start() while checkpoint-{} is being written", snapshot_.global_step);
  if (error_ && unwritten_) return;
  writing_ = true;
  unwritten_.reset();
  changed_.notify_all();
}

void CheckpointWriter::run() {
  const at::NoGradGuard no_grad;  // a property of each thread
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return writing_ || ending_; });
    if (!writing_) return;
    lock.unlock();
    const std::optional<Error> error = outcome_of([this] { write_(snapshot_); });
    lock.lock();
    if (error) {
      keep(*error);
      unwritten_ = error;
    }
    writing_ = false;
    changed_.notify_all();
  }
}

/// With mutex_ held.
void CheckpointWriter::keep(const Error& error) {
  if (!on_disk_full_continue_ || !error.is_disk_full()) {
    if (!error_) error_ = error;
    return;
  }
  // Metrics would say the same at every step.
  if (error.message() != last_logged_) log::error("{}\non_disk_full = \"continue\": training goes on", error.what());
  last_logged_ = error.message();
}

void CheckpointWriter::guard(const std::function<void()>& action) {
  const std::optional<Error> error = outcome_of(action);
  if (!error) return;
  const std::lock_guard lock(mutex_);
  keep(*error);
}

bool CheckpointWriter::failed() const {
  const std::lock_guard lock(mutex_);
  return error_.has_value();
}

void CheckpointWriter::finish(bool must_be_written) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !writing_; });
  if (error_) throw *std::exchange(error_, std::nullopt);
  if (must_be_written && unwritten_) throw *std::exchange(unwritten_, std::nullopt);
}

}  // namespace lorashard
