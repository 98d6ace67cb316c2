// Files that are whole or absent: written beside their place, synced, then put there by one rename.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace lorashard {

/// Calls `write` with a temporary path in the same folder, then fsyncs it, renames it to `path` and fsyncs the
/// folder. On any failure the temporary file is removed and Error(io) names `path`; an Error of another kind thrown by
/// `write` goes through unchanged.
void write_durably(const std::filesystem::path& path, const std::function<void(const std::filesystem::path&)>& write);
void write_durably(const std::filesystem::path& path, std::string_view bytes);

/// ".tmp-" and 16 hex digits that nobody else has: the end of a temporary name.
std::string temporary_suffix();
/// NAME where `name` is "NAME" with such an end; nullopt for any other name.
std::optional<std::string> without_temporary_suffix(const std::string& name);

/// Appends all of `bytes` to the file `path` that `descriptor` has open with O_APPEND, or, where that fails (no room), none of
/// them: what was written is cut off again. Throws Error(io).
void append_whole(int descriptor, std::string_view bytes, const std::filesystem::path& path);

void fsync_file(const std::filesystem::path& path);    ///< Error(io) on failure
void fsync_folder(const std::filesystem::path& path);  ///< Error(io) on failure

/// The whole file as bytes; Error(usage) when it doesn't exist, Error(io) when it can't be read, Error(bad_data) when
/// it is larger than `max_bytes`.
std::string read_file(const std::filesystem::path& path, uint64_t max_bytes = uint64_t{1} << 30);

}  // namespace lorashard
