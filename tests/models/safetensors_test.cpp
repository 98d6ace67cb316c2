#include "models/safetensors.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>

#include "dist/error.h"
#include "models/safetensors_header.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

using ::testing::HasSubstr;

/// A safetensors file as bytes: length, header, that many zeros of data.
std::string file_bytes(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(data_bytes, '\0');
}

/// What is said about `file`; "" when it is accepted.
std::string fault_of(const std::string& file) {
  try {
    parse_safetensors_header(file, "x");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    EXPECT_THAT(error.message(), HasSubstr("reading safetensors 'x': "));
    return error.message();
  }
  return "";
}

void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

const char* const kGood =
    R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}})";

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  EXPECT_EQ(fault_of(file_bytes("{}", 0)), "");
  EXPECT_EQ(fault_of(file_bytes("{} \n\t\r  ", 0)), "");
  EXPECT_EQ(fault_of(file_bytes(kGood, 19)), "");
  EXPECT_EQ(fault_of(file_bytes(kGood + std::string(9 << 20, ' '), 19)), "");
  EXPECT_EQ(fault_of(file_bytes(R"({"__metadata__":{"format":"pt","":""}})", 0)), "");
  EXPECT_EQ(fault_of(file_bytes(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4)), "");
  EXPECT_EQ(
      fault_of(file_bytes(
          R"({"z":{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]},"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
          4)),
      "");
  EXPECT_EQ(fault_of(file_bytes(R"({"\u00e9\ud83d\ude00":{"shape":[1],"data_offsets":[0,1],"dtype":"BOOL"}})", 1)), "");
}

TEST(Safetensors, RefusesEachAttackAndNamesIt) {
  const auto one = [](const std::string& fields) { return R"({"a":{)" + fields + "}}"; };
  const auto shaped = [&](const std::string& shape) {
    return one(R"("dtype":"F32","data_offsets":[0,4],"shape":)" + shape);
  };
  std::string many_dims = "[1,1,1,1,1,1,1,1,1]";
  struct Attack {
    std::string header;
    size_t data_bytes;
    const char* said;
  };
  const Attack attacks[] = {
      {" {}", 0, "doesn't start with '{'"},
      {"\xef\xbb\xbf{}", 0, "doesn't start with '{'"},
      {"", 0, "doesn't start with '{'"},
      {"[]", 0, "doesn't start with '{'"},
      {"{", 0, "isn't JSON"},
      {"{}}", 0, "isn't JSON"},
      {std::string("{}\0 ", 4), 0, "NUL"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},})", 4, "isn't JSON"},
      {"{\"\xff\":{}}", 0, "isn't JSON"},
      {R"({"\ud800":{}})", 0, "isn't JSON"},
      {R"({"a":5})", 0, "tensor 'a' is a number"},
      {R"({"a":{}})", 0, "lacks 'dtype'"},
      {R"({"a":[]})", 0, "tensor 'a' is an array"},
      {R"({"a":null})", 0, "tensor 'a' is null"},
      {one(R"("dtype":"F32","shape":[1])"), 4, "lacks 'data_offsets'"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1)"), 4, "unknown field 'x'"},
      {one(R"("dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4])"), 4, "'dtype' twice"},
      {one(R"("dtype":"F33","shape":[1],"data_offsets":[0,4])"), 4, "dtype 'F33'"},
      {one(R"("dtype":"F4","shape":[8],"data_offsets":[0,4])"), 4, "dtype 'F4'"},
      {one(R"("dtype":7,"shape":[1],"data_offsets":[0,4])"), 4, "'dtype' can't hold a number"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), 4, "1 data_offsets"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,4])"), 4, "3 data_offsets"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), 4, "lies at bytes 4 to 0"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0,8])"), 4, "lies at bytes 0 to 8"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[18446744073709551612,18446744073709551615])"), 4,
       "lies at bytes"},
      {shaped("[2]"), 4, "need 8"},
      {shaped("[0]"), 4, "need 0"},
      {shaped("[-1]"), 4, "negative"},
      {shaped("[-0]"), 4, "negative"},
      {shaped("[1.0]"), 4, "fraction"},
      {shaped("[1e0]"), 4, "fraction"},
      {shaped("[18446744073709551616]"), 4, "fraction or a number beyond 64 bits"},
      {shaped("[4294967296,4294967296]"), 4, "overflows"},
      {shaped("[9223372036854775808,2]"), 4, "overflows"},
      {shaped("[0,9223372036854775807,9223372036854775807]"), 4, "overflows"},
      {shaped("[4611686018427387905]"), 4, "overflows"},
      {shaped("[[1]]"), 4, "'shape' can't hold an array"},
      {shaped("{}"), 4, "'shape' can't hold an object"},
      {shaped(many_dims), 4, "more than 8"},
      {shaped("[1]"), 5, "end at byte 4 of the data"},
      {shaped("[1]"), 3, "lies at bytes 0 to 4"},
      {"{}", 1, "end at byte 0 of the data"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
       1, "'a' is there twice"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
       1, "starts at byte 0"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "starts at byte 1"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2, "starts at byte 1"},
      {R"({"__metadata__":{"k":1}})", 0, "strings alone"},
      {R"({"__metadata__":{"k":{}}})", 0, "strings alone"},
      {R"({"__metadata__":[]})", 0, "strings alone"},
      {R"({"__metadata__":null})", 0, "strings alone"},
      {R"({"__metadata__":{"k":"1","k":"1"}})", 0, "metadata key 'k' is there twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "'__metadata__' is there twice"},
      {"{\"a\":" + std::string(200'000, '['), 0, "is an array"},
      {"{\"" + std::string(2000, 'n') + "\":{}}", 0, "more than 1024 bytes"},
      {"{" + std::string(9 << 20, ' ') + "}", 0, "token of more than"},
      {R"({"a":{"shape":[)" + std::string(9 << 20, '1'), 0, "token of more than"},
      {"{\"__metadata__\":{\"k\":\"" + std::string(9 << 20, 'v') + "\"}}", 0, "token of more than"},
  };
  for (const Attack& attack : attacks) {
    SCOPED_TRACE(attack.header.substr(0, 120));
    EXPECT_THAT(fault_of(file_bytes(attack.header, attack.data_bytes)), HasSubstr(attack.said));
  }
}

TEST(Safetensors, RefusesAFileThatEndsTooEarlyAtEveryLength) {
  const std::string good = file_bytes(kGood, 19);
  for (size_t length = 0; length < good.size(); ++length) EXPECT_NE(fault_of(good.substr(0, length)), "") << length;
  EXPECT_NE(fault_of(good + " "), "");
}

TEST(Safetensors, RefusesAHeaderLengthBeyondTheFile) {
  std::string file = file_bytes(kGood, 19);
  for (const uint64_t length :
       {uint64_t{1000}, uint64_t{100'000'001}, ~uint64_t{0}, ~uint64_t{0} - 7, uint64_t{1} << 63}) {
    std::memcpy(file.data(), &length, 8);
    EXPECT_THAT(fault_of(file), HasSubstr("it says its header has"));
  }
}

TEST(Safetensors, RefusesMoreTensorsThanAnyModelHas) {
  std::string header = "{";
  for (int i = 0; i <= 100'000; ++i)
    header += fmt::format(R"({}"{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", i ? "," : "", i);
  EXPECT_THAT(fault_of(file_bytes(header + "}", 0)), HasSubstr("more than 100000 tensors"));
}

TEST(Safetensors, SurvivesMutatedHeaders) {
  const std::string good = file_bytes(std::string(R"({"__metadata__":{"format":"pt"},)") + (kGood + 1), 19);
  const int count = std::getenv("LORASHARD_LONG_TESTS") ? 100'000 : 5'000;
  std::mt19937 random(1);
  int accepted = 0;
  for (int i = 0; i < count; ++i) {
    std::string file = good;
    const int changes = 1 + static_cast<int>(random() % 3);
    for (int j = 0; j < changes; ++j) file[random() % file.size()] = static_cast<char>(random());
    accepted += fault_of(file).empty();
  }
  std::printf("%d mutated files, %d accepted\n", count, accepted);
  EXPECT_GT(accepted, 0);  // changes of the data and of names are harmless
  EXPECT_LT(accepted, count / 2);
}

TEST(Safetensors, WritesAndReadsEveryType) {
  TempDir folder;
  StateDict state;
  int seed = 0;
  for (const at::ScalarType dtype :
       {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort, at::kChar, at::kByte,
        at::kBool, at::kUInt16, at::kUInt32, at::kUInt64, at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    const at::Tensor values = at::arange(6, at::kFloat).sub(dtype == at::kBool ? 2.5 : seed % 3).reshape({2, 3});
    state[fmt::format("t{}", seed++)] = dtype == at::kBool ? values > 0 : values.abs().to(dtype);
  }
  state["scalar"] = at::scalar_tensor(7.5);
  state["empty"] = at::empty({0, 3});
  state["strided"] = at::arange(6, at::kFloat).reshape({2, 3}).t();
  const Metadata metadata = {{"format", "pt"}, {"note", "line\nbreak \"quoted\" \xc3\xa9"}};
  write_safetensors(folder / "x.safetensors", state, metadata);

  const SafetensorsFile file(folder / "x.safetensors");
  EXPECT_EQ(file.metadata(), metadata);
  EXPECT_EQ(file.keys().size(), state.size());
  for (const auto& [key, tensor] : state) {
    const at::Tensor found = file.tensor(key);
    ASSERT_EQ(found.scalar_type(), tensor.scalar_type()) << key;
    ASSERT_EQ(found.sizes(), tensor.sizes()) << key;
    const at::Tensor expected = tensor.contiguous();
    const bool is_same = expected.nbytes() == 0 ||
                         std::memcmp(found.const_data_ptr(), expected.const_data_ptr(), expected.nbytes()) == 0;
    EXPECT_TRUE(is_same) << key;
  }
}

TEST(Safetensors, TheSameContentGivesTheSameBytes) {
  TempDir folder;
  const StateDict state = {{"b", at::ones({3})}, {"a", at::ones({2}, at::kLong)}};
  const Metadata metadata = {{"z", "1"}, {"a", "2"}};
  const auto bytes = [&](const char* name) {
    write_safetensors(folder / name, state, metadata);
    std::ifstream file(folder / name, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  const std::string first = bytes("1");
  EXPECT_EQ(first, bytes("2"));
  EXPECT_EQ(first.substr(8, first.size() - 8 - 28),
            R"({"__metadata__":{"a":"2","z":"1"},"a":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},)"
            R"("b":{"dtype":"F32","shape":[3],"data_offsets":[16,28]}} )");
}

TEST(Safetensors, ATensorOutlivesItsFile) {
  TempDir folder;
  write_safetensors(folder / "x", {{"a", at::arange(1000, at::kFloat)}});
  at::Tensor kept;
  {
    const SafetensorsFile file(folder / "x");
    kept = file.tensor("a");
    EXPECT_EQ(kept.const_data_ptr(), file.tensor("a").const_data_ptr()) << "expected views of one mapping";
  }
  std::filesystem::remove(folder / "x");
  EXPECT_EQ(kept.sum().item<double>(), 499500);
}

TEST(Safetensors, ReadsMisalignedTensors) {
  TempDir folder;
  std::string file = file_bytes(
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})",
      9);
  const float values[] = {1.5f, -2.5f};
  std::memcpy(file.data() + file.size() - 8, values, 8);
  write_bytes(folder / "x", file);
  const at::Tensor b = SafetensorsFile(folder / "x").tensor("b");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b.const_data_ptr()) % 4, 0u);
  EXPECT_EQ(b[0].item<float>(), 1.5f);
  EXPECT_EQ(b[1].item<float>(), -2.5f);
}

TEST(Safetensors, RefusesBoolsThatAreNone) {
  TempDir folder;
  std::string file = file_bytes(R"({"a":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}})", 2);
  file.back() = 2;
  write_bytes(folder / "x", file);
  EXPECT_THROW(SafetensorsFile(folder / "x").tensor("a"), Error);
}

TEST(Safetensors, SaysWhichFileIsMissingOrNone) {
  TempDir folder;
  try {
    SafetensorsFile(folder / "no.safetensors");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_THAT(error.message(), HasSubstr("no.safetensors"));
  }
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  EXPECT_THROW(SafetensorsFile(folder / "fifo"), Error);
  EXPECT_THROW(SafetensorsFile(folder.path()), Error);
  write_bytes(folder / "nothing", "");
  EXPECT_THROW(SafetensorsFile(folder / "nothing"), Error);
}

TEST(Safetensors, RefusesToWriteWhatReadersWouldRefuse) {
  TempDir folder;
  EXPECT_THROW(write_safetensors(folder / "x", {{"__metadata__", at::ones({1})}}), Error);
  EXPECT_THROW(write_safetensors(folder / "x", {{"a", at::ones({1})}}, {{"note", "\xff"}}), Error);
  EXPECT_THROW(write_safetensors(folder / "x", {{"a", at::ones({1}, at::kComplexFloat)}}), Error);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace lorashard
