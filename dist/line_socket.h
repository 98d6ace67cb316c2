// Short text lines over TCP that never block the thread that sends or reads them.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lorashard {

/// Owns a connected socket (or, as a listener, a listening one). A peer that doesn't read loses lines, whole ones.
class LineSocket {
 public:
  LineSocket() = default;
  explicit LineSocket(int descriptor);
  ~LineSocket();
  LineSocket(LineSocket&& other) noexcept { *this = std::move(other); }
  LineSocket& operator=(LineSocket&& other) noexcept;

  int descriptor() const { return descriptor_; }  ///< -1: none
  /// The peer is gone, or sends what is no line.
  bool is_closed() const { return closed_; }
  /// Sent as far as there is room; dropped while an earlier line is still waiting for room.
  void send(std::string_view line);
  /// The lines that have come, without their ends.
  std::vector<std::string> receive();
  /// Whether a line comes within `seconds`.
  std::optional<std::string> wait_for_line(double seconds);

 private:
  void flush();
  int descriptor_ = -1;
  bool closed_ = false;
  std::string incoming_, outgoing_;
};

/// Listens on every address of this host, on a port of the system's choice. Throws Error(io).
std::pair<LineSocket, uint16_t> listen_for_lines();
/// The next one who has connected, if any.
std::optional<LineSocket> accept_lines(const LineSocket& listener);
/// A connection to the numeric `address`, if it comes about within `seconds`.
std::optional<LineSocket> connect_lines(const std::string& address, uint16_t port, double seconds);
/// Numeric addresses under which other hosts may reach this one; loopback is not among them.
std::vector<std::string> addresses_of_this_host();

}  // namespace lorashard
