// The `lorashard` program. main() is the one place that turns an Error into a line on stderr and an exit code.
#include <csignal>
#include <exception>

#include "dist/agreement.h"
#include "dist/error.h"
#include "dist/log.h"
#include "launch/commands.h"

namespace {

constexpr const char* kFooter =
    "From nothing to an adapter:\n"
    "  lorashard init-base --preset tiny-sd15 base       a small random base model, for trials\n"
    "  lorashard pack pictures --out pack                captioned pictures to HDF5 shards\n"
    "  lorashard train recipe.toml                       one process; every setting is in the recipe\n"
    "  lorashard launch recipe.toml --ranks 4            the same adapter, bit for bit, from four\n"
    "Exit codes: 0 done, 2 wrong use or recipe, 65 bad input data, 70 internal, 74 I/O, 75 stopped on request with a\n"
    "checkpoint (start again to go on), 76 a rank was lost, 77 gradients not finite.";

}  // namespace

int main(int argc, char** argv) {
  using namespace lorashard;
  // A full file-size limit or a closed pipe is an error of the write that met it, not the end of the process.
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
  CLI::App app("lorashard trains LoRA adapters for Stable Diffusion on one CPU or many.", "lorashard");
  app.footer(kFooter);
  app.require_subcommand(1);
  app.set_version_flag("--version", LORASHARD_VERSION);
  add_pack_command(app);
  add_train_command(app);
  add_launch_command(app);
  add_bench_command(app);
  add_generate_command(app);
  add_fuse_command(app);
  add_inspect_command(app);
  add_convert_command(app);
  add_report_command(app);
  add_init_base_command(app);
  add_doctor_command(app);
  add_help_command(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : exit_code(ErrorKind::usage);
  } catch (const Exit& exit) {
    return exit.code;
  } catch (const AgreedError& error) {
    if (error.speaks()) log::error("{}", error.what());
    return exit_code(error.kind());
  } catch (const Error& error) {
    log::error("{}", error.what());
    return exit_code(error.kind());
  } catch (const std::exception& error) {
    log::error("lorashard failed: {}\nhint: this is a fault of lorashard; please report it with the command and the recipe", describe(error));
    return exit_code(ErrorKind::internal);
  }
}
