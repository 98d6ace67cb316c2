#include "dist/cuda_library.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "dist/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

TEST(CudaLibrary, SaysThatItIsNotThere) {
  const TempDir folder;
  const CudaLibrary library(folder.path());
  EXPECT_FALSE(library.loaded());
  EXPECT_EQ(library.why_not(), fmt::format("there is no '{}'", (folder.path() / "liblorashard_cuda.so").string()));
  EXPECT_NE(library.hint().find("--preset cuda"), std::string::npos) << library.hint();
}

// From here on LibTorch's CUDA side is asked for too; where its wheels are not installed that is what is said instead.
void expect_refusal(const CudaLibrary& library, const std::string& what) {
  EXPECT_FALSE(library.loaded());
  const bool no_wheels = library.why_not().find("loading LibTorch's CUDA side: ") != std::string::npos;
  EXPECT_NE(library.why_not().find(no_wheels ? "cannot open shared object file" : what), std::string::npos)
      << library.why_not();
  EXPECT_FALSE(library.hint().empty());
}

TEST(CudaLibrary, SaysWhyAFileIsNoLibrary) {
  const TempDir folder;
  std::ofstream(folder.path() / "liblorashard_cuda.so") << "not a library";
  expect_refusal(CudaLibrary(folder.path()), "file too short");
}

TEST(CudaLibrary, RefusesOneOfAnotherVersion) {
  const TempDir folder;
  std::filesystem::copy_file(LORASHARD_OTHER_CUDA_LIBRARY, folder.path() / "liblorashard_cuda.so");
  expect_refusal(CudaLibrary(folder.path()), "found 0.0.0/0");
}

TEST(CudaLibrary, AsksNothingOfALibraryThatIsNotLoaded) {
  const TempDir folder;
  const CudaLibrary library(folder.path());
  EXPECT_THROW(library.devices(), Error);
  const World alone;
  const auto control = make_cpu_communicator(alone);
  try {
    library.make_nccl_communicator(*control);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_NE(error.message().find("liblorashard_cuda.so"), std::string::npos) << error.message();
  }
}

}  // namespace
}  // namespace lorashard
