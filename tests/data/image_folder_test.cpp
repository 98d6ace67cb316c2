#include "data/image_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "dist/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class ImageFolderTest : public testing::Test {
 protected:
  void put(const std::string& name, const std::string& bytes = "x") {
    std::filesystem::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
  }
  void put_all(const std::vector<std::string>& names) {
    for (const std::string& name : names) put(name);
  }
  ImageFolder list(const ImageFolderOptions& options = {}) const { return list_image_folder(folder_.path(), options); }

  /// "file_name=caption" of every picture.
  static std::vector<std::string> pairs(const ImageFolder& folder) {
    std::vector<std::string> result;
    for (const SourceImage& image : folder.images) result.push_back(image.file_name + "=" + image.caption);
    return result;
  }
  static std::vector<std::string> left_out(const ImageFolder& folder) {
    std::vector<std::string> result;
    for (const LeftOut& item : folder.left_out) result.push_back(item.file_name + ": " + item.reason);
    return result;
  }
  void expect_error(ErrorKind kind, const std::string& part, const ImageFolderOptions& options = {}) const {
    try {
      list(options);
      ADD_FAILURE() << "no error, expected one with: " << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_THAT(error.what(), HasSubstr(part));
    }
  }
  TempDir folder_;
};

TEST_F(ImageFolderTest, JsonlKeepsTheOrderOfTheTable) {
  put_all({"b.png", "a.jpg", "sub/c.webp"});
  put("metadata.jsonl",
      "\xef\xbb\xbf{\"file_name\": \"b.png\", \"text\": \"second \\u00e4\"}\r\n\n"
      "{\"text\": \" kept as it is \", \"file_name\": \"sub/c.webp\", \"other\": [1, {\"a\": 2}]}\n"
      "{\"file_name\": \"./a.jpg\", \"text\": \"last\"}");
  const ImageFolder folder = list();
  EXPECT_EQ(folder.caption_source, CaptionSource::metadata_jsonl);
  EXPECT_THAT(pairs(folder), ElementsAre("b.png=second \xc3\xa4", "sub/c.webp= kept as it is ", "a.jpg=last"));
  EXPECT_TRUE(folder.left_out.empty());
}

TEST_F(ImageFolderTest, CsvIsReadByRfc4180) {
  put_all({"a.png", "b.png", "c,d.png", "e.png"});
  put("metadata.csv",
      "\xef\xbb\xbfn,text,file_name\r\n1,plain,a.png\r\n2,\"with, comma and \"\"quotes\"\"\",b.png\r\n"
      "3,\"two\nlines\",\"c,d.png\"\r\n4,\"\",e.png\n");
  const ImageFolder folder = list();
  EXPECT_EQ(folder.caption_source, CaptionSource::metadata_csv);
  EXPECT_THAT(pairs(folder), ElementsAre("a.png=plain", "b.png=with, comma and \"quotes\"", "c,d.png=two\nlines"));
  EXPECT_THAT(left_out(folder), ElementsAre("e.png: it has no caption in metadata.csv"));
}

TEST_F(ImageFolderTest, ColumnsCanBeNamed) {
  put("a.png");
  put("metadata.csv", "image,prompt\na.png,hello\n");
  EXPECT_THAT(pairs(list({.image_column = "image", .caption_column = "prompt"})), ElementsAre("a.png=hello"));
  expect_error(ErrorKind::bad_data, "expected a column 'file_name', found 'image', 'prompt'");
  expect_error(ErrorKind::bad_data, "--caption-column", {.image_column = "image"});
}

TEST_F(ImageFolderTest, WrongCaptionColumnOfJsonlIsAnError) {
  put("a.png");
  put("metadata.jsonl", R"({"file_name": "a.png", "prompt": "hello"})");
  expect_error(ErrorKind::bad_data, "expected a column 'text', found 'file_name', 'prompt'");
}

TEST_F(ImageFolderTest, TableInASubFolderNamesFilesBesideIt) {
  put_all({"train/a.png", "train/deep/b.png", "c.png"});
  put("train/metadata.jsonl",
      "{\"file_name\": \"a.png\", \"text\": \"one\"}\n{\"file_name\": \"deep/b.png\", \"text\": \"two\"}\n");
  const ImageFolder folder = list();
  EXPECT_THAT(pairs(folder), ElementsAre("train/a.png=one", "train/deep/b.png=two"));
  EXPECT_THAT(left_out(folder), ElementsAre("c.png: it isn't in train/metadata.jsonl"));
}

TEST_F(ImageFolderTest, TxtGivesItsFirstLineThatIsNotBlank) {
  put_all({"b/x.png", "a.PNG", "c.jpeg", "d.png", "e.png"});
  put("b/x.txt", "\xef\xbb\xbf\n  A bird. \r\nes.utf8=Un p\xc3\xa1jaro.\n");
  put("a.txt", "upper case");
  put("c.txt", " \n\t\r\n");
  put("e.txt", "one line\n\n");
  put("notes.md");
  const ImageFolder folder = list();
  EXPECT_EQ(folder.caption_source, CaptionSource::txt_beside);
  EXPECT_THAT(pairs(folder), ElementsAre("a.PNG=upper case", "b/x.png=A bird.", "e.png=one line"));
  EXPECT_THAT(left_out(folder),
              ElementsAre("c.jpeg: the .txt beside it is blank", "d.png: there is no .txt with a caption beside it"));
  EXPECT_EQ(folder.num_longer_caption_files, 1);
  EXPECT_EQ(folder.num_other_files, 1);
}

TEST_F(ImageFolderTest, MissingCaptionsCanBeAllowed) {
  put_all({"a.png", "b.png"});
  put("b.txt", "here");
  EXPECT_THAT(pairs(list({.allow_missing_captions = true})), ElementsAre("a.png=", "b.png=here"));
}

TEST_F(ImageFolderTest, WithoutAnyCaptionAllPicturesAreTaken) {
  put_all({"b.png", "a.png", "Z.png", ".hidden.png", ".git/x.png", "old.bmp"});
  const ImageFolder folder = list();
  EXPECT_EQ(folder.caption_source, CaptionSource::none);
  EXPECT_THAT(pairs(folder), ElementsAre("Z.png=", "a.png=", "b.png="));
  EXPECT_THAT(left_out(folder), ElementsAre("old.bmp: of this format nothing is read: only PNG, JPEG and WebP"));
}

TEST_F(ImageFolderTest, CaptionSourceCanBeChosen) {
  put_all({"dog/a.png", "cat/b.png", "c.png"});
  put("dog/a.txt", "from the text");
  put("metadata.csv", "file_name,text\nc.png,from the table\n");
  EXPECT_THAT(pairs(list()), ElementsAre("c.png=from the table"));
  EXPECT_THAT(pairs(list({.captions = CaptionSource::txt_beside})), ElementsAre("dog/a.png=from the text"));
  EXPECT_THAT(pairs(list({.captions = CaptionSource::none})), ElementsAre("c.png=", "cat/b.png=", "dog/a.png="));
  EXPECT_THAT(pairs(list({.captions = CaptionSource::folder_names})), ElementsAre("cat/b.png=cat", "dog/a.png=dog"));
  expect_error(ErrorKind::usage, "expected a metadata.jsonl", {.captions = CaptionSource::metadata_jsonl});
}

TEST_F(ImageFolderTest, JsonlGoesBeforeCsvAndSaysSo) {
  put("a.png");
  put("metadata.jsonl", R"({"file_name": "a.png", "text": "jsonl"})");
  put("metadata.csv", "file_name,text\na.png,csv\n");
  const ImageFolder folder = list();
  EXPECT_THAT(pairs(folder), ElementsAre("a.png=jsonl"));
  EXPECT_THAT(left_out(folder), ElementsAre("metadata.csv: it isn't read, because there is a metadata.jsonl"));
}

TEST_F(ImageFolderTest, NoFileOutsideTheFolderIsEverNamed) {
  const TempDir elsewhere;
  std::ofstream(elsewhere / "secret.png") << "secret";
  std::filesystem::create_symlink(elsewhere / "secret.png", folder_ / "link.png");
  std::filesystem::create_directory_symlink(elsewhere.path(), folder_ / "linked");
  put_all({"a.png", "sub/b.png"});
  ASSERT_EQ(mkfifo((folder_ / "pipe.png").c_str(), 0600), 0);
  const std::vector<std::pair<std::string, std::string>> cases = {
      {(elsewhere / "secret.png").string(), "it is absolute"},
      {"../" + elsewhere.path().filename().string() + "/secret.png", "it holds '..'"},
      {"sub/../a.png", "it holds '..'"},
      {"sub\\\\b.png", "it holds a backslash"},
      {"a.png\\u0000.txt", "'file_name': found a zero byte in the text"},
      {"", "it is no file name"},
      {"link.png", "it is a link that leaves the folder"},
      {"linked/secret.png", "it is a link that leaves the folder"},
      {"pipe.png", "it is no regular file"},
      {"sub", "it is no regular file"},
      {"none.png", "it isn't there"},
  };
  for (const auto& [name, reason] : cases) {
    put("metadata.jsonl",
        "{\"file_name\": \"a.png\", \"text\": \"fine\"}\n{\"file_name\": \"" + name + "\", \"text\": \"t\"}\n");
    expect_error(ErrorKind::bad_data, "metadata.jsonl', line 2");
    expect_error(ErrorKind::bad_data, reason);
  }
  std::filesystem::remove(folder_ / "metadata.jsonl");
  const ImageFolder folder = list();
  EXPECT_THAT(pairs(folder), ElementsAre("a.png=", "sub/b.png="));
  EXPECT_THAT(left_out(folder),
              ElementsAre("link.png: it is a link that leaves the folder",
                          "linked: it is a link to a folder, which isn't followed", "pipe.png: it is no regular file"));
}

TEST_F(ImageFolderTest, LinkedTablesAndCaptionsOutsideAreNotRead) {
  const TempDir elsewhere;
  std::ofstream(elsewhere / "secret") << "secret";
  put("a.png");
  std::filesystem::create_symlink(elsewhere / "secret", folder_ / "a.txt");
  expect_error(ErrorKind::usage, "the .txt beside it: it is a link that leaves the folder");
  std::filesystem::create_symlink(elsewhere / "secret", folder_ / "metadata.csv");
  expect_error(ErrorKind::bad_data, "metadata.csv': it is a link that leaves the folder");
}

TEST_F(ImageFolderTest, AFileNamedTwiceIsAnError) {
  put("a.png");
  put("metadata.csv", "file_name,text\na.png,one\n./a.png,two\n");
  expect_error(ErrorKind::bad_data, "line 3: the file './a.png' was named before");
}

TEST_F(ImageFolderTest, BrokenTablesNameTheLine) {
  put("a.png");
  const std::string fine = "{\"file_name\": \"a.png\", \"text\": \"t\"}\n";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{\"file_name\": ", "line 2: expected a JSON object"},
      {"[1]", "line 2: expected a JSON object, found array"},
      {"{\"text\": \"t\"}", "line 2: expected a column 'file_name'"},
      {"{\"file_name\": 3}", "line 2: 'file_name': expected a text, found number"},
      {"{\"file_name\": \"a.png\", \"text\": [\"a\", 2]}", "'text': expected texts, found number"},
      {"{\"file_name\": \"a.png\", \"file_name\": \"b.png\"}", "line 2: the key 'file_name' is there twice"},
      {"{\"file_name\": \"a.png\", \"x\": " + std::string(100'000, '['), "line 2: JSON nested deeper than 32"},
      {"{\"file_name\": \"a.png\", \"text\": \"\xc3(\"}", "line 2: expected UTF-8"},
      {std::string("{}\0", 3), "line 2: found a zero byte"},
      {std::string((1 << 20) + 1, ' '), "line 2: a row is longer than 1048576 bytes"},
  };
  for (const auto& [line, part] : cases) {
    put("metadata.jsonl", fine + line);
    expect_error(ErrorKind::bad_data, part);
  }
  std::filesystem::remove(folder_ / "metadata.jsonl");
  const std::vector<std::pair<std::string, std::string>> csv_cases = {
      {"a.png,one,two\n", "line 2: expected 2 fields, found 3"},
      {"a.png\n", "line 2: expected 2 fields, found 1"},
      {"a.png,\"open\n", "line 2: a quoted field has no closing quote"},
      {"a.png,\"shut\"x\n", "line 2: text after a closing quote"},
      {"a.png,x\"y\"\n", "line 2: a quote inside a field"},
  };
  for (const auto& [line, part] : csv_cases) {
    put("metadata.csv", "file_name,text\n" + line);
    expect_error(ErrorKind::bad_data, part);
  }
  put("metadata.csv", "file_name,text,text\n");
  expect_error(ErrorKind::bad_data, "the column 'text' is there twice");
}

TEST_F(ImageFolderTest, ACaptionInUtf16IsAnError) {
  put("a.png");
  put("a.txt", std::string("\xff\xfe"
                           "b\0i\0r\0d\0",
                           10));
  expect_error(ErrorKind::bad_data, "a.txt', line 1: expected UTF-8 text");
}

TEST_F(ImageFolderTest, FoldersWithoutPicturesAreWrongUse) {
  expect_error(ErrorKind::usage, "found none");
  put("a.txt", "caption");
  expect_error(ErrorKind::usage, "found none");
  EXPECT_THROW(list_image_folder(folder_ / "none"), Error);
  EXPECT_THROW(list_image_folder(folder_ / "a.txt"), Error);
}

TEST_F(ImageFolderTest, NamesThatAreNotUtf8AreLeftOut) {
  put_all({"a.png", "b\xff.png"});
  const ImageFolder folder = list();
  EXPECT_THAT(pairs(folder), ElementsAre("a.png="));
  EXPECT_THAT(left_out(folder), ElementsAre("b?.png: its name isn't UTF-8"));
}

TEST(CaptionSource, WordsAreReadBack) {
  for (const auto source : {CaptionSource::metadata_jsonl, CaptionSource::metadata_csv, CaptionSource::txt_beside,
                            CaptionSource::none, CaptionSource::folder_names})
    EXPECT_EQ(parse_caption_source(to_string(source)), source);
  EXPECT_THROW(parse_caption_source("csv"), Error);
}

TEST_F(ImageFolderTest, TablesMayHoldSeveralCaptionsMasksWeightsAndRepeats) {
  put_all({"a.png", "b.png", "sub/a-mask.png"});
  put("metadata.jsonl",
      "{\"file_name\": \"a.png\", \"text\": [\"one\", \"\", \"two\"], \"m\": \"sub/a-mask.png\", \"w\": 0.5, \"r\": 3}\n"
      "{\"file_name\": \"b.png\", \"text\": \"only\", \"m\": null}");
  const ImageFolder folder = list({.mask_column = "m", .weight_column = "w", .repeats_column = "r"});
  ASSERT_EQ(folder.images.size(), 2u);
  EXPECT_TRUE(folder.left_out.empty()) << "a mask isn't a picture that was forgotten";
  const SourceImage &a = folder.images[0], &b = folder.images[1];
  EXPECT_EQ(a.caption, "one");
  EXPECT_THAT(a.more_captions, ElementsAre("two"));
  EXPECT_EQ(a.mask.filename(), "a-mask.png");
  EXPECT_EQ(a.weight, 0.5);
  EXPECT_EQ(a.repeats, 3);
  EXPECT_TRUE(b.mask.empty() && b.weight == 1 && b.repeats == 1 && b.more_captions.empty());

  put("metadata.jsonl", "{\"file_name\": \"a.png\", \"text\": \"x\", \"m\": \"../other.png\"}");
  expect_error(ErrorKind::bad_data, "'../other.png': it holds '..'", {.mask_column = "m"});
  for (const char* bad : {"-1", "\"2\"", "1e999"}) {
    put("metadata.jsonl", fmt::format("{{\"file_name\": \"a.png\", \"text\": \"x\", \"w\": {}}}", bad));
    expect_error(ErrorKind::bad_data, "metadata.jsonl', line 1", {.weight_column = "w"});
  }
  for (const char* bad : {"0", "1.5", "-2"}) {
    put("metadata.jsonl", fmt::format("{{\"file_name\": \"a.png\", \"text\": \"x\", \"r\": {}}}", bad));
    expect_error(ErrorKind::bad_data, "'r': expected a whole number from 1", {.repeats_column = "r"});
  }
}

TEST_F(ImageFolderTest, CsvColumnsOfNumbersAreRead) {
  put_all({"a.png", "b.png"});
  put("metadata.csv", "file_name,text,w,r\na.png,x,2.5,4\nb.png,y,,\n");
  const ImageFolder folder = list({.weight_column = "w", .repeats_column = "r"});
  EXPECT_EQ(folder.images[0].weight, 2.5);
  EXPECT_EQ(folder.images[0].repeats, 4);
  EXPECT_TRUE(folder.images[1].weight == 1 && folder.images[1].repeats == 1);
  put("metadata.csv", "file_name,text,w\na.png,x,much\n");
  expect_error(ErrorKind::bad_data, "'w': expected a number, found 'much'", {.weight_column = "w"});
  expect_error(ErrorKind::bad_data, "expected a column 'weight'", {.weight_column = "weight"});
}

TEST_F(ImageFolderTest, EachLineOfATextIsACaptionWhenAskedFor) {
  put_all({"a.png"});
  put("a.txt", "first \n\n second\nthird");
  EXPECT_TRUE(list().images[0].more_captions.empty());
  const ImageFolder folder = list({.all_caption_lines = true});
  EXPECT_EQ(folder.images[0].caption, "first");
  EXPECT_THAT(folder.images[0].more_captions, ElementsAre("second", "third"));
  EXPECT_EQ(folder.num_longer_caption_files, 0);
}

}  // namespace
}  // namespace lorashard
