#include "trainer/checkpoint.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/log.h"
#include "dist/sha256.h"

namespace lorashard {
namespace fs = std::filesystem;
namespace {

constexpr const char* kFormat = "lorashard-checkpoint";
constexpr int64_t kVersion = 2;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kState = "state.safetensors";
constexpr const char* kParameters = "parameters";
constexpr const char* kRecipe = "recipe.toml";
constexpr const char* kAdapter = "pytorch_lora_weights.safetensors";
constexpr uint64_t kMaxManifestBytes = uint64_t{1} << 20;

std::optional<int64_t> parse_number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool canonical = error == std::errc() && end == text.data() + text.size() && std::to_string(value) == text;
  return canonical && value >= 0 ? std::optional(value) : std::nullopt;
}

/// N of a folder named "checkpoint-N".
std::optional<int64_t> step_of(const fs::path& folder) {
  const std::string name = folder.filename().string(), prefix = "checkpoint-";
  return name.starts_with(prefix) ? parse_number(std::string_view(name).substr(prefix.size())) : std::nullopt;
}

bool is_temporary(const fs::path& folder) {
  const auto name = without_temporary_suffix(folder.filename().string());
  return name && step_of(*name);
}

/// The folders of a run directory that `wanted` picks; none where there is no directory yet.
template <class Predicate>
std::vector<fs::path> folders_in(const fs::path& output_dir, const Predicate& wanted) {
  std::vector<fs::path> folders;
  std::error_code error;
  for (fs::directory_iterator it(output_dir, error), end; !error && it != end; it.increment(error)) {
    if (std::error_code gone; wanted(it->path()) && it->is_directory(gone)) folders.push_back(it->path());
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    throw Error(ErrorKind::io, fmt::format("listing '{}': {}", output_dir.string(), error.message()));
  }
  return folders;
}

/// Newest first, by step and not by time: clocks jump.
std::vector<fs::path> checkpoints_in(const fs::path& output_dir) {
  auto folders = folders_in(output_dir, [](const fs::path& path) { return step_of(path).has_value(); });
  std::sort(folders.begin(), folders.end(), [](const auto& a, const auto& b) { return step_of(a) > step_of(b); });
  return folders;
}

/// A checkpoint that is whole, but that only an older lorashard can read.
struct OlderVersion : Error {
  OlderVersion(const fs::path& manifest, int64_t version)
      : Error(ErrorKind::bad_data,
              fmt::format("reading checkpoint file '{}': expected version {}, found {}: an older lorashard wrote it",
                          manifest.string(), kVersion, version),
              "go on with the lorashard that wrote it, or choose another output_dir") {}
};

Error broken(const fs::path& file, const std::string& what) {
  return Error(ErrorKind::bad_data, fmt::format("reading checkpoint file '{}': {}", file.string(), what),
               "use an older checkpoint; resume_from_checkpoint = \"latest\" finds the newest whole one by itself");
}

/// The manifest as it is written: two runs that agree write the same bytes, and any other bytes are damage.
std::string print_manifest(const nlohmann::json& manifest) { return manifest.dump(2) + "\n"; }

nlohmann::json make_manifest(const fs::path& folder, int64_t global_step) {
  nlohmann::json files;
  for (const char* name : {kAdapter, kRecipe, kState}) {
    files[name] = {{"size", fs::file_size(folder / name)}, {"sha256", sha256_file(folder / name)}};
  }
  return {{"format", kFormat}, {"version", kVersion}, {"global_step", global_step}, {"files", files}};
}

void check_file(const fs::path& file, const nlohmann::json& expected) {
  std::error_code error;
  const uint64_t size = fs::file_size(file, error);
  if (error) throw broken(file, error.message());
  if (size != expected.at("size").get<uint64_t>()) {
    throw broken(file, fmt::format("expected {} bytes, found {}", expected.at("size").get<uint64_t>(), size));
  }
  const std::string hash = sha256_file(file), wanted = expected.at("sha256").get<std::string>();
  if (hash != wanted) throw broken(file, fmt::format("expected SHA-256 {:.16}..., found {:.16}...", wanted, hash));
}

/// Throws Error(bad_data) unless every file is what the manifest says. Returns the manifest's global_step.
int64_t verify(const fs::path& folder) {
  std::error_code unreadable;
  if (!fs::is_directory(folder, unreadable)) {
    throw Error(ErrorKind::usage, fmt::format("reading checkpoint '{}': there is no such folder", folder.string()));
  }
  const fs::path path = folder / kManifest;
  try {
    const std::string text = read_file(path, kMaxManifestBytes);
    const nlohmann::json manifest = nlohmann::json::parse(text);
    if (manifest.at("format") != kFormat) throw broken(path, fmt::format("expected format '{}'", kFormat));
    if (manifest.at("version") != kVersion) {
      const nlohmann::json& version = manifest.at("version");
      const int64_t number = version.is_number_integer() ? version.get<int64_t>() : 0;
      if (number >= 1 && number < kVersion) throw OlderVersion(path, number);
      throw broken(path, fmt::format("expected version {}, found {}", kVersion, version.dump()));
    }
    if (print_manifest(manifest) != text) throw broken(path, "it isn't as it was written");
    const int64_t global_step = manifest.at("global_step").get<int64_t>();
    for (const char* name : {kAdapter, kRecipe, kState}) check_file(folder / name, manifest.at("files").at(name));
    return global_step;
  } catch (const nlohmann::json::parse_error& error) {
    throw broken(path, fmt::format("byte {} is not as in JSON",
                                   error.byte));  // its own text quotes the bytes, whatever they are
  } catch (const nlohmann::json::exception& error) {
    throw broken(path, error.what());
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::usage) throw broken(path, error.message());  // a file that isn't there
    throw;
  }
}

Metadata state_metadata(const TrainingState& state) {
  Metadata metadata = {{"format", kFormat},
          {"version", std::to_string(kVersion)},
          {"global_step", std::to_string(state.global_step)},
          {"updates", std::to_string(state.updates)},
          {"skipped_in_a_row", std::to_string(state.skipped_in_a_row)},
          {"pack_hash", state.pack_hash},
          {"base_hash", state.base_hash},
          {"parameter_keys", fmt::format("{}", fmt::join(state.parameter_keys, "\n"))}};
  for (const auto& [key, text] : {std::pair{"arithmetic", state.arithmetic}, std::pair{"program", state.program}}) {
    if (!text.empty()) metadata[key] = text;
  }
  return metadata;
}

/// All tensors under their names, and the numbers as tensors without dimensions, which keep type and bits.
StateDict state_tensors(const TrainingState& state) {
  StateDict tensors = state.parts.tensors;
  LORASHARD_CHECK(!tensors.contains(kParameters), "a part's tensor is named '{}'", kParameters);
  tensors[kParameters] = state.parameters;
  for (const auto& [name, number] : state.parts.scalars) {
    const auto type = at::TensorOptions(std::holds_alternative<double>(number) ? at::kDouble : at::kLong);
    std::visit([&, &name = name](auto value) { tensors[name] = at::scalar_tensor(value, type); }, number);
  }
  return tensors;
}

void write_files(const fs::path& folder, const TrainingState& state, const StateDict& adapter,
                 const Metadata& adapter_metadata) {
  if (::mkdir(folder.c_str(), 0777) != 0) throw errno_error(fmt::format("making '{}'", folder.string()));
  write_durably(folder / kRecipe, state.recipe);
  write_safetensors(folder / kAdapter, adapter, adapter_metadata);
  write_safetensors(folder / kState, state_tensors(state), state_metadata(state));
  write_durably(folder / kManifest, print_manifest(make_manifest(folder, state.global_step)));
  fsync_folder(folder);
}

/// Puts `temporary` in the place of `folder` by one rename. An older folder of that name takes the temporary's name.
void publish(const fs::path& temporary, const fs::path& folder) {
  const auto failed = [&] { return errno_error(fmt::format("renaming '{}'", temporary.string())); };
  if (::rename(temporary.c_str(), folder.c_str()) == 0) return;
  if (errno != ENOTEMPTY && errno != EEXIST && errno != ENOTDIR) throw failed();
  if (::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, folder.c_str(), RENAME_EXCHANGE) == 0) return;
  if (errno != EINVAL && errno != ENOSYS) throw failed();
  // No exchange on this file system (NFS): put the older one aside first. A crash in between leaves checkpoints before
  // it.
  const fs::path aside = folder.string() + temporary_suffix();
  if (::rename(folder.c_str(), aside.c_str()) != 0) throw failed();
  if (::rename(temporary.c_str(), folder.c_str()) != 0) {
    const Error error = failed();
    if (::rename(aside.c_str(), folder.c_str()) != 0)
      log::warning("'{}' is now at '{}'", folder.string(), aside.string());
    throw error;
  }
  std::error_code ignored;
  fs::remove_all(aside, ignored);
}

void remove_with_warning(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) log::warning("cannot remove '{}': {}", folder.string(), error.message());
}

/// Renamed first, to another temporary name: whoever else has this one loses all of the folder in one moment, and a crash while
/// removing leaves no half checkpoint.
void move_aside_and_remove(const fs::path& folder) {
  const std::string name = folder.filename().string();
  const fs::path aside = folder.parent_path() / (without_temporary_suffix(name).value_or(name) + temporary_suffix());
  if (::rename(folder.c_str(), aside.c_str()) == 0) return remove_with_warning(aside);
  if (errno != ENOENT) log::warning("{}", errno_error(fmt::format("cannot remove '{}'", folder.string())).message());
}

/// Lets the next read come from the disk and not from the page cache, so that a check afterwards is one of the disk.
void drop_from_cache(const fs::path& folder) {
  for (const char* name : {kAdapter, kRecipe, kState, kManifest}) {
    const int file = ::open((folder / name).c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) continue;  // the check will say so
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    ::close(file);
  }
}

/// The errno behind an exception, or 0.
int os_error_of(const std::exception& error) {
  if (const auto* ours = dynamic_cast<const Error*>(&error)) return ours->os_error();
  const auto* system = dynamic_cast<const std::system_error*>(&error);
  return system != nullptr ? system->code().value() : 0;
}

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// Sorts what state_tensors() made one: parameters, numbers, tensors of parts.
void put(TrainingState& state, const std::string& name, const at::Tensor& tensor, const fs::path& path) {
  const at::ScalarType type = tensor.scalar_type();
  if (name == kParameters) {
    if (type != at::kFloat || tensor.dim() != 1) {
      throw broken(path, fmt::format("tensor '{}': expected one dimension of F32", name));
    }
    state.parameters = tensor.clone();  // off the mapped file: an optimizer works in place
  } else if (tensor.dim() == 0 && type == at::kDouble) {
    state.parts.scalars[name] = tensor.item<double>();
  } else if (tensor.dim() == 0 && type == at::kLong) {
    state.parts.scalars[name] = tensor.item<int64_t>();
  } else {
    state.parts.tensors[name] = tensor.clone();
  }
}

TrainingState parse_state(const fs::path& path) {
  const SafetensorsFile file(path);
  const auto text = [&](const std::string& key) {
    const auto it = file.metadata().find(key);
    if (it == file.metadata().end()) throw broken(path, fmt::format("expected metadata '{}'", key));
    return it->second;
  };
  const auto text_if_any = [&](const std::string& key) {
    const auto it = file.metadata().find(key);
    return it == file.metadata().end() ? "" : it->second;
  };
  const auto number = [&](const std::string& key) {
    const auto value = parse_number(text(key));
    if (!value) throw broken(path, fmt::format("metadata '{}': expected a number, found '{}'", key, text(key)));
    return *value;
  };
  TrainingState state{.global_step = number("global_step"),
                      .updates = number("updates"),
                      .skipped_in_a_row = number("skipped_in_a_row"),
                      .parameters = {},
                      .parts = {},
                      .recipe = "",
                      .pack_hash = text("pack_hash"),
                      .base_hash = text("base_hash"),
                      .arithmetic = text_if_any("arithmetic"),
                      .program = text_if_any("program"),
                      .parameter_keys = split_lines(text("parameter_keys"))};
  for (const auto& [name, tensor] : file.tensors()) put(state, name, tensor, path);
  if (!state.parameters.defined()) throw broken(path, fmt::format("expected tensor '{}'", kParameters));
  return state;
}

}  // namespace

fs::path write_checkpoint(const fs::path& output_dir, const TrainingState& state, const StateDict& adapter,
                          const Metadata& adapter_metadata, const std::function<void()>& before_publishing) {
  const fs::path folder = output_dir / fmt::format("checkpoint-{}", state.global_step);
  const fs::path temporary = folder.string() + temporary_suffix();
  try {
    write_files(temporary, state, adapter, adapter_metadata);
    if (before_publishing) before_publishing();
    publish(temporary, folder);
    fsync_folder(output_dir);
  } catch (const std::exception& error) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    const auto* ours = dynamic_cast<const Error*>(&error);
    if (ours != nullptr && ours->kind() != ErrorKind::io && ours->kind() != ErrorKind::usage) throw;
    throw Error(ErrorKind::io,
                fmt::format("writing checkpoint '{}': {}", folder.string(), ours ? ours->message() : error.what()),
                "the checkpoints before it are whole; make room or give permission, then start again",
                os_error_of(error));
  }
  if (fs::exists(temporary)) remove_with_warning(temporary);  // the folder that was there before
  return folder;
}

uint64_t checkpoint_bytes(const fs::path& folder) {
  uint64_t bytes = 0;
  std::error_code error;
  for (const char* name : {kAdapter, kRecipe, kState, kManifest}) {
    const uint64_t size = fs::file_size(folder / name, error);
    if (!error) bytes += size;
  }
  return bytes;
}

TrainingState read_checkpoint(const fs::path& folder) {
  const int64_t global_step = verify(folder);
  TrainingState state = parse_state(folder / kState);
  if (state.global_step != global_step) {
    throw broken(folder / kState,
                 fmt::format("expected global_step {} as in the manifest, found {}", global_step, state.global_step));
  }
  state.recipe = read_file(folder / kRecipe);
  return state;
}

std::optional<fs::path> newest_checkpoint(const fs::path& output_dir) {
  const auto folders = checkpoints_in(output_dir);
  for (const fs::path& folder : folders) {
    try {
      const int64_t global_step = verify(folder);
      if (global_step == step_of(folder)) return folder;
      log::warning("passing over '{}': it holds step {}", folder.string(), global_step);
    } catch (const OlderVersion&) {
      throw;  // passing over it would begin the run anew
    } catch (const Error& error) {
      log::warning("passing over '{}': {}", folder.string(), error.message());
    }
  }
  if (!folders.empty())
    log::warning("none of the {} checkpoints in '{}' is whole", folders.size(), output_dir.string());
  return std::nullopt;
}

void discard_unfinished_checkpoints(const fs::path& output_dir) {
  for (const fs::path& left : folders_in(output_dir, is_temporary)) move_aside_and_remove(left);
}

void remove_old_checkpoints(const fs::path& output_dir, int64_t limit, const fs::path& just_written,
                            const std::function<void()>& before_removing) {
  try {
    drop_from_cache(just_written);
    verify(just_written);
  } catch (const Error& error) {
    throw Error(ErrorKind::io, fmt::format("reading back what was just written: {}", error.message()),
                "the disk does not keep what is written to it; older checkpoints were left in place");
  }
  if (limit <= 0) return;
  if (before_removing) before_removing();
  int64_t kept = 1;  // just_written, whatever its step
  for (const fs::path& folder : checkpoints_in(output_dir)) {
    if (folder.filename() == just_written.filename() || kept++ < limit) continue;
    move_aside_and_remove(folder);
  }
}

}  // namespace lorashard
