#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>

#include "data/image_folder.h"
#include "dist/error.h"
#include "tests/fuzz/fuzz.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;
using testing::AnyOf;
using testing::HasSubstr;

/// Counts how often the kernel opened any of some files, or a file in any of some folders.
class OpenWatch {
 public:
  OpenWatch() : fd_(inotify_init1(IN_NONBLOCK | IN_CLOEXEC)) {}
  ~OpenWatch() { close(fd_); }
  OpenWatch(const OpenWatch&) = delete;
  OpenWatch& operator=(const OpenWatch&) = delete;
  bool add(const fs::path& path) { return inotify_add_watch(fd_, path.c_str(), IN_OPEN | IN_ACCESS) >= 0; }
  int num_opened() {
    alignas(inotify_event) char events[4096];
    int count = 0;
    for (ssize_t size; (size = read(fd_, events, sizeof events)) > 0;) count += static_cast<int>(size / static_cast<ssize_t>(sizeof(inotify_event)));
    return count;
  }

 private:
  int fd_;
};

/// A folder of pictures with everything in it that a table must not lead out by, and one outside that nothing may open.
class FuzzCaptionTable : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(root_ / "sub");
    for (const char* name : {"a.png", "b.jpg", "sub/c.webp", "mask.png"}) write_quickly(root_ / name, "x");
    write_quickly(outside_ / "secret.png", "secret");
    write_quickly(outside_ / "metadata.csv", "file_name,text\nsecret.png,secret\n");
    fs::create_symlink(outside_ / "secret.png", root_ / "link.png");
    fs::create_symlink("/dev/zero", root_ / "zero.png");
    fs::create_directory_symlink(outside_.path(), root_ / "linked");
    ASSERT_EQ(mkfifo((root_ / "pipe.png").c_str(), 0600), 0);
    for (const fs::path& path : {outside_.path(), outside_ / "secret.png", outside_ / "metadata.csv", root_ / "pipe.png"}) ASSERT_TRUE(watch_.add(path));
  }
  /// The tables that are there now, listed: "" or the error.
  std::string list() {
    try {
      const ImageFolder folder = list_image_folder(root_.path(), options_);
      for (const SourceImage& image : folder.images) {
        for (const fs::path& path : {image.path, image.mask.empty() ? image.path : image.mask}) {
          const auto [in_root, rest] = std::mismatch(real_root_.begin(), real_root_.end(), path.begin(), path.end());
          EXPECT_TRUE(in_root == real_root_.end() && fs::canonical(path) == path && fs::is_regular_file(path)) << path;
        }
      }
      return "";
    } catch (const Error& error) {
      EXPECT_TRUE(error.kind() == ErrorKind::bad_data || error.kind() == ErrorKind::usage) << error.what();
      return error.what();
    }
  }
  void fuzz(const std::string& table, const std::string& good, int trials);

  TempDir root_, outside_;
  fs::path real_root_ = fs::canonical(root_.path());
  OpenWatch watch_;
  ImageFolderOptions options_{.mask_column = "mask", .weight_column = "weight", .repeats_column = "repeats"};
};

void FuzzCaptionTable::fuzz(const std::string& table, const std::string& good, int trials) {
  const std::string outside = (outside_ / "secret.png").string();
  const std::string tokens[] = {"\"", "{", "}", "[", "]", ":", ",", "\\", "\\u0000", "\\ud800", "\n", "\r", "\r\n", "null", "-1", "1e999", "nan",
                                "0x10", "\xff", "\xc0\xaf", "\xed\xa0\x80", "\xef\xbb\xbf", std::string(1, '\0'), "../", "/", "./", "//", "..",
                                "../" + outside_.path().filename().string() + "/secret.png", outside, "link.png", "linked/secret.png",
                                "zero.png", "pipe.png", "/dev/zero", "sub", "sub/../a.png", "sub\\\\c.webp", "\"text\"", "\"file_name\"",
                                "file_name", std::string(300, 'a'), std::string(64, '['), std::string(5000, '/')};
  write_quickly(root_ / table, good);
  ASSERT_EQ(list(), "");
  std::mt19937_64 random(2025);
  int accepted = 0, with_line = 0;
  for (int i = 0; i < trials; ++i) {
    write_quickly(root_ / table, mutated(good, tokens, random));
    const std::string fault = list();
    accepted += fault.empty();
    with_line += fault.find("line ") != std::string::npos;
  }
  const int opened = watch_.num_opened();
  std::printf("%s: %d mutated: %d accepted, %d refused with a line, %d otherwise; %d files opened that may not be\n", table.c_str(), trials,
              accepted, with_line, trials - accepted - with_line, opened);
  EXPECT_EQ(opened, 0);
  EXPECT_GT(accepted, 0) << "changes of captions are harmless";
  EXPECT_GT(with_line, trials / 4);
}

TEST_F(FuzzCaptionTable, MutatedJsonlLeavesTheFolderNever) {
  fuzz("metadata.jsonl",
       "{\"file_name\": \"a.png\", \"text\": \"a bird\", \"mask\": \"mask.png\", \"weight\": 0.5, \"repeats\": 2}\n"
       "{\"file_name\": \"./b.jpg\", \"text\": [\"one\", \"two\"]}\n{\"text\": \"\\u00e4\", \"file_name\": \"sub/c.webp\"}\n",
       fuzz_count(5000, 100'000));
}

TEST_F(FuzzCaptionTable, MutatedCsvLeavesTheFolderNever) {
  fuzz("metadata.csv",
       "file_name,text,mask,weight,repeats\na.png,\"a \"\"bird\"\", one\",mask.png,0.5,2\n./b.jpg,two,,,\nsub/c.webp,\"three\nlines\",,1,1\n",
       fuzz_count(5000, 100'000));
}

TEST_F(FuzzCaptionTable, NamesThatLeadOutAreRefused) {
  std::string up = "../";
  for (int i = 0; i < 40; ++i) up += "../";
  const std::string names[] = {"../" + outside_.path().filename().string() + "/secret.png", up + "dev/zero", (outside_ / "secret.png").string(),
                               "/dev/zero", "link.png", "zero.png", "linked/secret.png", "pipe.png", "sub", "sub/../a.png", "a.png/", ".", "..", "/",
                               "", std::string(5000, 'a') + ".png", std::string(5000, '/'), "a.png/../../x", "linked/../a.png"};
  for (const std::string& name : names) {
    for (const std::string place : {"file_name", "mask"}) {
      const std::string other = place == "mask" ? "\"file_name\": \"a.png\", " : "";
      if (name.empty() && !other.empty()) continue;  // no mask
      write_quickly(root_ / "metadata.jsonl", "{" + other + "\"" + place + "\": \"" + name + "\", \"text\": \"t\"}\n");
      EXPECT_THAT(list(), HasSubstr("line 1")) << place << " " << name.substr(0, 100);
    }
  }
  EXPECT_EQ(watch_.num_opened(), 0);
  // A link inside the folder to a file inside it is no way out.
  fs::create_symlink("a.png", root_ / "inside.png");
  write_quickly(root_ / "metadata.jsonl", "{\"file_name\": \"inside.png\", \"text\": \"t\"}\n");
  EXPECT_NO_THROW(list_image_folder(root_.path(), options_));
  std::ifstream(outside_ / "secret.png").get();
  EXPECT_GT(watch_.num_opened(), 0) << "the watch sees what is opened";
}

TEST_F(FuzzCaptionTable, TablesAndCaptionsThatAreNoFilesAreNotOpened) {
  fs::create_symlink(outside_ / "metadata.csv", root_ / "metadata.csv");
  EXPECT_THAT(list(), HasSubstr("leaves the folder"));
  fs::remove(root_ / "metadata.csv");
  fs::create_symlink("/dev/zero", root_ / "metadata.jsonl");
  EXPECT_THAT(list(), HasSubstr("leaves the folder"));
  fs::remove(root_ / "metadata.jsonl");
  ASSERT_EQ(mkfifo((root_ / "metadata.jsonl").c_str(), 0600), 0);  // opening it would wait for ever
  EXPECT_THAT(list(), HasSubstr("no regular file"));
  fs::remove(root_ / "metadata.jsonl");
  ASSERT_EQ(mkfifo((root_ / "a.txt").c_str(), 0600), 0);
  EXPECT_THAT(list(), AnyOf(HasSubstr("no regular file"), HasSubstr("no .txt"))) << "pictures with no caption are left out";
  fs::remove(root_ / "a.txt");
  fs::create_symlink(outside_ / "secret.png", root_ / "a.txt");
  EXPECT_THAT(list(), HasSubstr("leaves the folder"));
  EXPECT_EQ(watch_.num_opened(), 0);
}

TEST_F(FuzzCaptionTable, AnEndlessLineTakesNoMemory) {
  const int64_t before = start_watching_memory();
  options_ = {};
  const std::string header = "file_name,text\n";
  for (const char* name : {"metadata.jsonl", "metadata.csv"}) {
    const bool jsonl = name == std::string_view("metadata.jsonl");
    for (const std::string& start : {std::string(), jsonl ? "{\"file_name\": \"a.png\", \"text\": \"" : header + "a.png,\""}) {
      write_quickly(root_ / name, start);
      fs::resize_file(root_ / name, uint64_t{1} << 30);  // the rest is a hole, which reads as zeros
      EXPECT_THAT(list(), HasSubstr("is longer than 1048576 bytes")) << name << " " << start;
    }
    fs::remove(root_ / name);
  }
  const std::string quotes = header + "a.png," + std::string(4 << 20, '"');
  write_quickly(root_ / "metadata.csv", quotes);
  EXPECT_THAT(list(), HasSubstr("line 2: a row is longer than"));
  fs::remove(root_ / "metadata.csv");
  write_quickly(root_ / "a.txt", "");
  fs::resize_file(root_ / "a.txt", uint64_t{1} << 30);
  EXPECT_NE(list(), "");
  const int64_t growth = most_memory() - before;
  std::printf("tables and captions of 1 GB: refused, %ld MB more memory\n", growth);
  EXPECT_LT(growth, 150);
}

}  // namespace
}  // namespace lorashard
