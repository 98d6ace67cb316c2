#include "data/parquet_library.h"

#include "data/parquet_api.h"
#include "dist/error.h"
#include "dist/late_library.h"

namespace lorashard {

ParquetLibrary::ParquetLibrary(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "liblorashard_parquet.so";
  if (!std::filesystem::is_regular_file(path)) {
    why_not_ = fmt::format("there is no '{}'", path.string());
    hint_ = "pack where lorashard was built with it (a bundle and -DLORASHARD_PARQUET=OFF leave it out); the pack can be copied";
    return;
  }
  const LateLibrary library = load_late_library(path, "lorashard_parquet", kParquetApiVersion);
  why_not_ = library.why_not;
  if (library.api == nullptr)
    hint_ = library.other_build ? "the program and its reader of parquet files must come from one build; build both again"
                                : "Apache Arrow comes with: .venv/bin/pip install --no-deps -r requirements.txt";
  api_ = static_cast<const ParquetApi*>(library.api);
}

std::string ParquetLibrary::version() const {
  LORASHARD_CHECK(api_ != nullptr, "{}", why_not_);
  return api_->version();
}

std::unique_ptr<ParquetReader> ParquetLibrary::open(const std::filesystem::path& path, const MetadataColumns& columns,
                                                    ParquetPart part) const {
  if (api_ == nullptr) throw Error(ErrorKind::usage, fmt::format("reading '{}': {}", path.string(), why_not_), hint_);
  return api_->open(path, columns, part);
}

const ParquetLibrary& parquet_library() {
  static const ParquetLibrary library(program_folder());
  return library;
}

}  // namespace lorashard
