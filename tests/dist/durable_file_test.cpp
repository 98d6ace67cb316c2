#include "dist/durable_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <stdexcept>

#include "dist/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

size_t files_in(const fs::path& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

TEST(DurableFile, WhatIsWrittenIsReadBack) {
  const TempDir folder;
  const std::string bytes("a\0b\n\xff", 5);
  write_durably(folder / "file", bytes);
  EXPECT_EQ(read_file(folder / "file"), bytes);
  write_durably(folder / "file", "other");
  EXPECT_EQ(read_file(folder / "file"), "other");
  EXPECT_EQ(files_in(folder.path()), 1u);
}

TEST(DurableFile, ANameWithoutAFolderIsInTheWorkingFolder) {
  const TempDir folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  write_durably("plain", "x");
  fs::current_path(before);
  EXPECT_EQ(read_file(folder / "plain"), "x");
}

TEST(DurableFile, AWriterThatThrowsLeavesTheOldFileAndNothingElse) {
  const TempDir folder;
  write_durably(folder / "file", "old");
  try {
    write_durably(folder / "file", [](const fs::path& temporary) {
      std::ofstream(temporary) << "half of the n";
      throw std::runtime_error("out of ink");
    });
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::io);
    EXPECT_NE(error.message().find((folder / "file").string()), std::string::npos);
    EXPECT_NE(error.message().find("out of ink"), std::string::npos);
  }
  EXPECT_EQ(read_file(folder / "file"), "old");
  EXPECT_EQ(files_in(folder.path()), 1u);
}

TEST(DurableFile, AnErrorOfAnotherKindKeepsItsKind) {
  const TempDir folder;
  const auto write = [](const fs::path&) { throw Error(ErrorKind::bad_data, "a hole in the data"); };
  try {
    write_durably(folder / "file", write);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
  }
  EXPECT_EQ(files_in(folder.path()), 0u);
}

TEST(DurableFile, AWriterThatWritesNothingIsAnError) {
  const TempDir folder;
  EXPECT_THROW(write_durably(folder / "file", [](const fs::path&) {}), Error);
  EXPECT_EQ(files_in(folder.path()), 0u);
}

TEST(DurableFile, AFullDiskLeavesTheOldFileAndNothingElse) {
  const TempDir folder;
  write_durably(folder / "file", "old");
  const pid_t child = fork();
  if (child == 0) {
    // A file size limit gives EFBIG after a short write, as a full disk gives ENOSPC.
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{4096, 4096};
    setrlimit(RLIMIT_FSIZE, &limit);
    try {
      write_durably(folder / "file", std::string(10000, 'x'));
    } catch (const Error& error) {
      const bool named = error.message().find((folder / "file").string()) != std::string::npos;
      _exit(error.kind() == ErrorKind::io && named ? 0 : 2);
    }
    _exit(1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(read_file(folder / "file"), "old");
  EXPECT_EQ(files_in(folder.path()), 1u);
}

TEST(DurableFile, AMissingFolderOrAFolderInTheWayIsNamed) {
  const TempDir folder;
  EXPECT_THROW(write_durably(folder / "nowhere" / "file", "x"), Error);
  fs::create_directory(folder / "taken");
  EXPECT_THROW(write_durably(folder / "taken", "x"), Error);
  EXPECT_EQ(files_in(folder.path()), 1u);
}

TEST(DurableFile, ReadingSaysWhetherAFileIsMissingOrTooLargeOrNoFile) {
  const TempDir folder;
  write_durably(folder / "file", "12345678");
  const auto kind_of = [](const auto& action) {
    try {
      action();
    } catch (const Error& error) {
      return error.kind();
    }
    return ErrorKind::internal;
  };
  EXPECT_EQ(kind_of([&] { read_file(folder / "nowhere"); }), ErrorKind::usage);
  EXPECT_EQ(kind_of([&] { read_file(folder / "file", 7); }), ErrorKind::bad_data);
  EXPECT_EQ(read_file(folder / "file", 8), "12345678");
  EXPECT_EQ(kind_of([&] { read_file(folder.path()); }), ErrorKind::bad_data);
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(kind_of([&] { read_file(folder / "pipe"); }), ErrorKind::bad_data) << "and must not wait for a writer";
}

TEST(DurableFile, FilesGetTheModeOfTheUmask) {
  const TempDir folder;
  const mode_t before = umask(027);
  write_durably(folder / "file", "x");
  umask(before);
  struct stat status {};
  ASSERT_EQ(stat((folder / "file").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640u);
}

TEST(DurableFile, TemporarySuffixesDiffer) {
  EXPECT_NE(temporary_suffix(), temporary_suffix());
  EXPECT_EQ(temporary_suffix().size(), std::string(".tmp-").size() + 16);
  EXPECT_EQ(without_temporary_suffix("a.tmp-b" + temporary_suffix()), "a.tmp-b");
  for (const char* name : {"", "a", ".tmp-", "a.tmp-0123456789abcde", "a.tmp-0123456789abcdef0", "a.tmp-0123456789abcdeg", "a.tmp0123456789abcdef"})
    EXPECT_EQ(without_temporary_suffix(name), std::nullopt) << name;
}

}  // namespace
}  // namespace lorashard
