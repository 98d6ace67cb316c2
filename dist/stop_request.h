// A request to stop (USR1, USR2, TERM, INT): the handler sets a flag and nothing else; the trainer asks at step boundaries, agrees
// with the other ranks, writes a checkpoint and leaves.
#pragma once

namespace lorashard {

/// Installs the handlers. Call once, after MPI is up (it must not be able to take them over).
void install_stop_handlers();
/// True once a signal came, or request_stop() was called. Async-signal-safe, thread-safe.
bool stop_requested();
void request_stop();

}  // namespace lorashard
