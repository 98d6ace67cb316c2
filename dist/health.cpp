#include "dist/health.h"

#include <fmt/core.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <map>
#include <sstream>
#include <thread>
#include <tuple>
#include <utility>

#include "dist/agreement.h"
#include "dist/error.h"
#include "dist/line_socket.h"
#include "dist/log.h"
#include "dist/pace_monitor.h"

namespace lorashard {
namespace {

constexpr double kConnectSeconds = 3;  // for each address of rank 0
constexpr int kGoodbyeMs = 300;        // mpirun kills the others when the first has left: all are to have said why
constexpr double kAsleepSeconds = 1;   // a watcher that wakes so late was stopped itself
constexpr char kNewline = '\x1f';      // inside a line

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::string random_token() {
  uint64_t bits = 0;
  if (getrandom(&bits, sizeof bits, 0) != sizeof bits) throw errno_error("drawing a token for the heartbeats");
  return fmt::format("{:016x}", bits);
}

Beat beat_of_this_rank() {
  const Activity& mine = activity();
  return {.step = mine.step,
          .collective = mine.collective,
          .number = mine.number,
          .progress = mine.progress,
          .long_work = mine.long_work,
          .micro_batches = mine.micro_batches,
          .work_us = mine.work_us};
}

std::string print_beat(const Beat& beat) {
  return fmt::format("beat {} {} {} {} {} {} {}", beat.step, static_cast<int>(beat.collective), beat.number, beat.progress,
                     static_cast<int>(beat.long_work), beat.micro_batches, beat.work_us);
}

bool parse_beat(const std::string& line, Beat& beat) {
  int collective = 0, long_work = 0;
  std::istringstream words(line);
  std::string word;
  words >> word >> beat.step >> collective >> beat.number >> beat.progress >> long_work >> beat.micro_batches >> beat.work_us;
  if (!words || word != "beat" || collective < 0 || collective > static_cast<int>(Collective::finalize)) return false;
  beat.collective = static_cast<Collective>(collective);
  beat.long_work = long_work != 0;
  return true;
}

std::string place_of(const World& world) {
  return fmt::format("rank {} ({}, local rank {})", world.rank, world.hostname, world.local_rank);
}

// A log that nobody reads blocks who writes to it. The heart goes on, and the end comes.
void say(log::Level level, std::string text) {
  std::thread([level, text = std::move(text)] { log::write(level, text); }).detach();
}

[[noreturn]] void leave_as_lost(const std::string& why) {
  say(log::Level::error, why + "\nhint: started again, the run goes on from its newest checkpoint");
  std::this_thread::sleep_for(std::chrono::milliseconds(kGoodbyeMs));
  _exit(exit_code(ErrorKind::rank_lost));
}

// What rank 0 tells the others at the start.
struct Invitation {
  std::string hostname, token;
  uint16_t port = 0;
  HealthOptions options;
  std::vector<std::string> addresses;

  std::string print() const {
    std::string text = fmt::format("{} {} {} {} {} {} {} {}", hostname, token, port, options.collective_timeout_s,
                                   options.heartbeat_s, options.straggler_warning_s, options.straggler_pace,
                                   options.work_timeout_s);
    for (const std::string& address : addresses) text += " " + address;
    return text;
  }
  static Invitation parse(const std::string& text) {
    Invitation out;
    std::istringstream words(text);
    words >> out.hostname >> out.token >> out.port >> out.options.collective_timeout_s >> out.options.heartbeat_s >>
        out.options.straggler_warning_s >> out.options.straggler_pace >> out.options.work_timeout_s;
    for (std::string address; words >> address;) out.addresses.push_back(address);
    return out;
  }
};

LineSocket connect_to_rank_0(const Invitation& rank_0, const World& world) {
  // Hosts of one name may still be two: the loopback is only the first address tried. The answer proves who is there.
  std::vector<std::string> addresses = rank_0.addresses;
  addresses.insert(rank_0.hostname == world.hostname ? addresses.begin() : addresses.end(), "127.0.0.1");
  std::string tried;
  for (const std::string& address : addresses) {
    auto connection = connect_lines(address, rank_0.port, kConnectSeconds);
    if (connection) {
      connection->send(fmt::format("hello {} {}", rank_0.token, world.rank));
      Beat beat;
      const auto answer = connection->wait_for_line(kConnectSeconds);
      if (answer && parse_beat(*answer, beat)) return std::move(*connection);
    }
    tried += (tried.empty() ? "" : ", ") + address;
  }
  throw Error(ErrorKind::rank_lost,
              fmt::format("connecting {} to the heartbeat of rank 0 ({}): no answer at port {} of {}", place_of(world),
                          rank_0.hostname, rank_0.port, tried),
              "the ranks need TCP connections to any port of rank 0's host; distributed.collective_timeout_s = 0 does "
              "without a heartbeat");
}

}  // namespace

// The thread and what it watches. On rank 0 a connection for each other rank, elsewhere the one to rank 0.
class Health::Watch {
 public:
  Watch(const World& world, const HealthOptions& options, std::vector<std::string> places)
      : world_(world), options_(options), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), places_(std::move(places)) {
    if (wake_ < 0) throw errno_error("starting the heartbeat");
  }
  ~Watch() {
    if (thread_.joinable()) {
      leaving_ = true;
      const uint64_t one = 1;
      if (write(wake_, &one, sizeof one) < 0) leaving_ = true;  // it looks again at its next tick
      thread_.join();
    }
    close(wake_);
  }

  // Rank 0: from now on the others can connect.
  void serve(LineSocket listener, const std::string& token) {
    listener_ = std::move(listener);
    token_ = token;
    start();
  }
  void join(LineSocket to_rank_0) {
    peers_.emplace(0, std::move(to_rank_0));
    start();
  }

 private:
  void start() {
    // Signals are the training thread's.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { run(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_setname_np(thread_.native_handle(), "heartbeat");
  }

  void run() {
    std::vector<int> watched;
    for (int rank = 0; rank < world_.world_size; ++rank) {
      if (world_.rank == 0 || rank == 0) watched.push_back(rank);
    }
    HeartMonitor monitor(places_, watched, options_, now());
    PaceMonitor paces(places_, options_.straggler_pace);
    const double tick = std::clamp(options_.heartbeat_s / 4, 0.01, 0.25);
    double last_tick = now(), next_beat = last_tick;
    while (!leaving_) {
      wait_for_news(tick);
      const double time = now();
      if (time - last_tick > tick + kAsleepSeconds) monitor.forgive(time - last_tick);
      last_tick = time;
      accept_ranks();
      for (auto& [rank, peer] : peers_) hear(rank, peer, monitor, paces, time);
      if (time >= next_beat) {
        for (auto& [rank, peer] : peers_) peer.send(print_beat(beat_of_this_rank()));
        next_beat = time + options_.heartbeat_s;
      }
      if (world_.rank == 0) {
        const Beat mine = beat_of_this_rank();
        monitor.beat(0, mine, time);
        paces.beat(0, mine);
        for (const std::string& text : paces.judge()) say(log::Level::warning, text);
      }
      act_on(monitor.judge(time));
    }
    for (auto& [rank, peer] : peers_) peer.send("bye");
  }

  void wait_for_news(double seconds) {
    std::vector<pollfd> waited = {{.fd = wake_, .events = POLLIN, .revents = 0}};
    if (world_.rank == 0) waited.push_back({.fd = listener_.descriptor(), .events = POLLIN, .revents = 0});
    for (const LineSocket& guest : guests_)
      waited.push_back({.fd = guest.descriptor(), .events = POLLIN, .revents = 0});
    for (const auto& [rank, peer] : peers_) {
      if (!peer.is_closed()) waited.push_back({.fd = peer.descriptor(), .events = POLLIN, .revents = 0});
    }
    poll(waited.data(), waited.size(), static_cast<int>(seconds * 1e3));
  }

  // Who has connected is a guest until it has said which rank it is, and the token that only the ranks know.
  void accept_ranks() {
    if (world_.rank != 0) return;
    while (auto guest = accept_lines(listener_)) guests_.push_back(std::move(*guest));
    for (LineSocket& guest : guests_) {
      for (const std::string& line : guest.receive()) {
        std::istringstream words(line);
        std::string hello, token;
        int rank = 0;
        words >> hello >> token >> rank;
        if (hello != "hello" || token != token_ || rank < 1 || rank >= world_.world_size) break;
        guest.send(print_beat(beat_of_this_rank()));
        peers_[rank] = std::move(guest);
        break;
      }
    }
    std::erase_if(guests_, [](const LineSocket& guest) { return guest.descriptor() < 0 || guest.is_closed(); });
  }

  void hear(int rank, LineSocket& peer, HeartMonitor& monitor, PaceMonitor& paces, double time) {
    for (const std::string& line : peer.receive()) {
      Beat beat;
      if (parse_beat(line, beat)) {
        monitor.beat(rank, beat, time);
        paces.beat(rank, beat);
      } else if (line == "bye") {
        monitor.left(rank);
      } else if (line.starts_with("end ")) {
        std::string why = line.substr(4);
        std::replace(why.begin(), why.end(), kNewline, '\n');
        leave_as_lost(why);
      }
    }
    if (peer.is_closed()) monitor.closed(rank, time);
  }

  // Rank 0 speaks for all; of rank 0 itself, rank 1.
  void act_on(const HeartMonitor::Verdict& verdict) {
    if (world_.rank <= 1) {
      for (const std::string& text : verdict.warnings) say(log::Level::warning, text);
      for (const std::string& text : verdict.notes) say(log::Level::warning, text);
    }
    if (verdict.end.empty()) return;
    std::string line = verdict.end;
    std::replace(line.begin(), line.end(), '\n', kNewline);
    for (auto& [rank, peer] : peers_) peer.send("end " + line);
    leave_as_lost(verdict.end);
  }

  const World world_;
  const HealthOptions options_;
  const int wake_;
  const std::vector<std::string> places_;
  std::string token_;
  LineSocket listener_;
  std::vector<LineSocket> guests_;
  std::map<int, LineSocket> peers_;
  std::atomic<bool> leaving_{false};
  std::thread thread_;
};

Health::Health(Communicator& communicator, const HealthOptions& options) {
  const World& world = communicator.world();
  if (world.world_size == 1) return;
  Invitation mine;
  mine.hostname = world.hostname;
  mine.options = options;
  mine.addresses = addresses_of_this_host();
  LineSocket listener;
  run_agreed(communicator, "opening a port for heartbeats", [&] {
    if (world.rank != 0) return;
    mine.token = random_token();
    std::tie(listener, mine.port) = listen_for_lines();
  });
  const std::vector<std::string> places = communicator.all_gather(place_of(world));
  // Only rank 0's is read; an empty word would shift the others.
  const Invitation rank_0 = Invitation::parse(communicator.all_gather(world.rank == 0 ? mine.print() : "")[0]);
  if (rank_0.options.collective_timeout_s <= 0) return;
  run_agreed(communicator, "starting the heartbeat", [&] {
    watch_ = std::make_unique<Watch>(world, rank_0.options, places);
    if (world.rank == 0) watch_->serve(std::move(listener), mine.token);
    if (world.rank != 0) watch_->join(connect_to_rank_0(rank_0, world));
  });
}

Health::~Health() = default;

}  // namespace lorashard
