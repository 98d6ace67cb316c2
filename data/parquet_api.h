// What liblorashard_parquet.so offers to data/parquet_library.cpp.
#pragma once
#include <filesystem>
#include <memory>
#include <string>

#include "data/parquet_library.h"

namespace lorashard {

struct ParquetApi {
  std::string (*version)();
  std::unique_ptr<ParquetReader> (*open)(const std::filesystem::path& path, const MetadataColumns& columns, ParquetPart part);
};

/// Raise the number behind the slash when this header or data/parquet_library.h changes.
inline constexpr const char* kParquetApiVersion = LORASHARD_VERSION "/1";

}  // namespace lorashard
