#include "dist/line_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "dist/error.h"

namespace lorashard {
namespace {

constexpr size_t kLongestLine = 1 << 16;

bool wait_until_ready(int descriptor, short events, double seconds) {
  pollfd waited = {.fd = descriptor, .events = events, .revents = 0};
  return poll(&waited, 1, std::max(0, static_cast<int>(seconds * 1e3))) == 1;
}

}  // namespace

LineSocket::LineSocket(int descriptor) : descriptor_(descriptor) {
  const int yes = 1;
  setsockopt(descriptor_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

LineSocket::~LineSocket() {
  if (descriptor_ >= 0) close(descriptor_);
}

LineSocket& LineSocket::operator=(LineSocket&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(closed_, other.closed_);
  std::swap(incoming_, other.incoming_);
  std::swap(outgoing_, other.outgoing_);
  return *this;
}

void LineSocket::send(std::string_view line) {
  flush();
  if (!outgoing_.empty() || closed_ || descriptor_ < 0) return;
  outgoing_ = line;
  outgoing_ += '\n';
  flush();
}

void LineSocket::flush() {
  while (!outgoing_.empty() && !closed_) {
    const ssize_t sent = ::send(descriptor_, outgoing_.data(), outgoing_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    // What the peer said before it went can still be read: receive() sees the end.
    if (sent < 0) return outgoing_.clear();
    outgoing_.erase(0, static_cast<size_t>(sent));
  }
}

std::vector<std::string> LineSocket::receive() {
  char piece[4096];
  while (!closed_ && descriptor_ >= 0) {
    const ssize_t got = recv(descriptor_, piece, sizeof piece, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
    if (got <= 0) closed_ = true;
    if (got > 0) incoming_.append(piece, static_cast<size_t>(got));
  }
  std::vector<std::string> lines;
  size_t start = 0;
  for (size_t end; (end = incoming_.find('\n', start)) != std::string::npos; start = end + 1) {
    lines.push_back(incoming_.substr(start, end - start));
  }
  incoming_.erase(0, start);
  if (incoming_.size() > kLongestLine) closed_ = true;
  return lines;
}

std::optional<std::string> LineSocket::wait_for_line(double seconds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!closed_) {
    const auto lines = receive();
    if (!lines.empty()) return lines.front();
    const double left = std::chrono::duration<double>(deadline - std::chrono::steady_clock::now()).count();
    if (left <= 0 || (!closed_ && !wait_until_ready(descriptor_, POLLIN, left) && errno != EINTR)) break;
  }
  return std::nullopt;
}

std::pair<LineSocket, uint16_t> listen_for_lines() {
  const std::string doing = "opening a port for heartbeats";
  // Both families by one socket; IPv4 alone where the kernel has no IPv6.
  int descriptor = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_storage address = {};
  socklen_t size = sizeof(sockaddr_in6);
  address.ss_family = AF_INET6;  // any address, any port
  if (descriptor >= 0) {
    const int no = 0;
    setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
  }
  if (descriptor < 0 || bind(descriptor, reinterpret_cast<sockaddr*>(&address), size) != 0) {
    if (descriptor >= 0) close(descriptor);
    descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0) throw errno_error(doing);
    address = {};
    address.ss_family = AF_INET;
    size = sizeof(sockaddr_in);
    if (bind(descriptor, reinterpret_cast<sockaddr*>(&address), size) != 0) {
      const Error error = errno_error(doing);
      close(descriptor);
      throw error;
    }
  }
  LineSocket listener(descriptor);
  size = sizeof address;
  if (listen(descriptor, SOMAXCONN) != 0 ||
      getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw errno_error(doing);
  }
  const uint16_t port = address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                                                      : reinterpret_cast<sockaddr_in*>(&address)->sin_port;
  return {std::move(listener), ntohs(port)};
}

std::optional<LineSocket> accept_lines(const LineSocket& listener) {
  const int descriptor = accept4(listener.descriptor(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (descriptor < 0) return std::nullopt;
  return LineSocket(descriptor);
}

std::optional<LineSocket> connect_lines(const std::string& address, uint16_t port, double seconds) {
  addrinfo wanted = {}, *found = nullptr;
  wanted.ai_socktype = SOCK_STREAM;
  wanted.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  if (getaddrinfo(address.c_str(), std::to_string(port).c_str(), &wanted, &found) != 0) return std::nullopt;
  const int descriptor = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const bool tried =
      descriptor >= 0 && (connect(descriptor, found->ai_addr, found->ai_addrlen) == 0 || errno == EINPROGRESS);
  freeaddrinfo(found);
  if (descriptor < 0) return std::nullopt;
  LineSocket connection(descriptor);
  int error = 0;
  socklen_t size = sizeof error;
  const bool connected = tried && wait_until_ready(descriptor, POLLOUT, seconds) &&
                         getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
  if (!connected) return std::nullopt;
  return connection;
}

std::vector<std::string> addresses_of_this_host() {
  std::vector<std::string> addresses;
  ifaddrs* interfaces = nullptr;
  if (getifaddrs(&interfaces) != 0) return addresses;
  for (const ifaddrs* i = interfaces; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || (i->ifa_flags & IFF_UP) == 0 || (i->ifa_flags & IFF_LOOPBACK) != 0) continue;
    char text[INET6_ADDRSTRLEN] = {};
    if (i->ifa_addr->sa_family == AF_INET) {
      inet_ntop(AF_INET, &reinterpret_cast<sockaddr_in*>(i->ifa_addr)->sin_addr, text, sizeof text);
    } else if (i->ifa_addr->sa_family == AF_INET6) {
      const auto* v6 = reinterpret_cast<sockaddr_in6*>(i->ifa_addr);
      if (!IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr)) inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
    }
    if (text[0] != '\0') addresses.emplace_back(text);
  }
  freeifaddrs(interfaces);
  return addresses;
}

}  // namespace lorashard
