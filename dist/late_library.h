// A second shared library of ours beside the program, loaded when what it does is first asked for: so the program is whole where the
// libraries behind the second one are missing. C++ types cross the border, so both must come from one build: they compare versions.
#pragma once
#include <filesystem>
#include <string>

namespace lorashard {

struct LateLibrary {
  const void* api = nullptr;  ///< what the library's NAME_api() returns; null where it can't be used
  std::string why_not;        ///< empty where it can
  bool other_build = false;   ///< it was loaded, but its version isn't the one expected
};

/// Loads `path` with its own libraries, for itself alone, and never unloads it. The library has two functions with C names:
/// NAME_api_version(), which must return `version`, and NAME_api(). Throws nothing for what is missing or wrong.
LateLibrary load_late_library(const std::filesystem::path& path, const std::string& name, const std::string& version);

/// The folder this program lies in, where its libraries are looked for.
std::filesystem::path program_folder();

/// dlerror(), as a text.
std::string last_dl_error();

}  // namespace lorashard
