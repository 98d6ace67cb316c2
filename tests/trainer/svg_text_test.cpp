#include "trainer/svg_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lorashard {
namespace {

using testing::ElementsAre;

TEST(SvgText, NumbersAreShort) {
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(1e-4), "1e-4");
  EXPECT_EQ(short_number(2.5e-5), "2.5e-5");
  EXPECT_EQ(short_number(0.00015), "1.5e-4");
  EXPECT_EQ(short_number(0.25), "0.25");
  EXPECT_EQ(short_number(100), "100");
}

TEST(SvgText, MarkupIsEscapedAndControlCharactersGo) {
  EXPECT_EQ(escape_xml("a <b> & \"c\" 'd'\x01\n"), "a &lt;b&gt; &amp; &quot;c&quot; &apos;d&apos;");
  EXPECT_EQ(escape_xml("Größe"), "Größe");
}

TEST(SvgText, LinesBreakBetweenWordsAndFit) {
  const std::string caption = "a red house beside a long and winding road";
  const auto lines = wrap_text(caption, 80, 10, 99);
  std::string joined;
  for (const auto& line : lines) {
    EXPECT_LE(text_width(line, 10), 80);
    joined += (joined.empty() ? "" : " ") + line;
  }
  EXPECT_GT(lines.size(), 2);
  EXPECT_EQ(joined, caption);
}

TEST(SvgText, WhatDoesNotFitEndsInDots) {
  const auto lines = wrap_text("a red house beside a long and winding road", 80, 10, 2);
  ASSERT_EQ(lines.size(), 2);
  EXPECT_THAT(lines[1], testing::EndsWith("..."));
  EXPECT_LE(text_width(lines[1], 10), 80);
}

TEST(SvgText, AWordLongerThanALineIsCutBetweenCharacters) {
  EXPECT_THAT(wrap_text("日本語の長い", 30, 10, 9), ElementsAre("日本語", "の長い"));
  EXPECT_THAT(wrap_text("日本語の長い", 30, 10, 1), ElementsAre("日..."));
  EXPECT_THAT(wrap_text("", 30, 10, 2), ElementsAre());
}

}  // namespace
}  // namespace lorashard
