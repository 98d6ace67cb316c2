#include "dist/line_socket.h"

#include <gmock/gmock.h>

namespace lorashard {
namespace {

struct Pair {
  LineSocket here, there;
};

Pair connected() {
  const auto [listener, port] = listen_for_lines();
  auto here = connect_lines("127.0.0.1", port, 5);
  std::optional<LineSocket> there;
  while (here && !there) there = accept_lines(listener);
  return {here ? std::move(*here) : LineSocket(), there ? std::move(*there) : LineSocket()};
}

TEST(LineSocket, LinesArriveWholeAndInOrder) {
  Pair pair = connected();
  pair.here.send("hello 1");
  EXPECT_EQ(pair.there.wait_for_line(5), "hello 1");
  pair.there.send("");
  EXPECT_EQ(pair.here.wait_for_line(5), "");
}

TEST(LineSocket, APeerThatNeverReadsLosesWholeLinesAndBlocksNobody) {
  Pair pair = connected();
  const std::string line(1000, 'x');
  for (int i = 0; i < 20000; ++i) pair.here.send(line);
  int whole = 0;
  while (pair.there.wait_for_line(0.2)) {
    ++whole;
    for (const std::string& more : pair.there.receive()) EXPECT_EQ(more, line);
    pair.here.send(line);
    if (whole > 10) break;
  }
  EXPECT_GT(whole, 0);
  EXPECT_FALSE(pair.there.is_closed());
}

TEST(LineSocket, WhatWasSaidBeforeTheEndIsHeard) {
  Pair pair = connected();
  pair.here.send("bye");
  pair.here = LineSocket();
  EXPECT_EQ(pair.there.wait_for_line(5), "bye");
  EXPECT_FALSE(pair.there.wait_for_line(5));
  EXPECT_TRUE(pair.there.is_closed());
}

TEST(LineSocket, NobodyListensThere) {
  uint16_t port = 0;
  {
    const auto [listener, its_port] = listen_for_lines();
    port = its_port;
  }
  EXPECT_FALSE(connect_lines("127.0.0.1", port, 1));
  EXPECT_FALSE(connect_lines("not an address", port, 1));
}

}  // namespace
}  // namespace lorashard
