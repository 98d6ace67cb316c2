// The subcommands: each is one file of this folder that adds its options to the program and the work to do when it is chosen.
// The work runs inside CLI11's callback and throws Error like everything else.
#pragma once
#include <CLI/CLI.hpp>

namespace lorashard {

/// Thrown by a subcommand that has said all there is to say and ends the program with `code`.
struct Exit {
  int code;
};

void add_pack_command(CLI::App& app);       // launch/pack.cpp
void add_train_command(CLI::App& app);      // launch/train.cpp
void add_launch_command(CLI::App& app);     // launch/launch.cpp
void add_bench_command(CLI::App& app);      // launch/bench.cpp
void add_fuse_command(CLI::App& app);       // launch/fuse.cpp
void add_generate_command(CLI::App& app);   // launch/generate.cpp
void add_inspect_command(CLI::App& app);    // launch/inspect.cpp
void add_convert_command(CLI::App& app);    // launch/convert.cpp
void add_report_command(CLI::App& app);     // launch/report.cpp
void add_init_base_command(CLI::App& app);  // launch/init_base.cpp
void add_doctor_command(CLI::App& app);     // launch/doctor.cpp
void add_help_command(CLI::App& app);       // launch/help.cpp

}  // namespace lorashard
