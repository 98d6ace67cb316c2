#include "launch/as_rank.h"

#include <optional>

#include "dist/agreement.h"
#include "dist/error.h"
#include "dist/log.h"
#include "dist/stop_request.h"
#include "dist/world.h"

namespace lorashard {

void run_as_rank(const RankWork& work) {
  std::optional<AgreedError> agreed;
  std::unique_ptr<Health> health;
  {
    MpiSession session(nullptr, nullptr);
    const World& world = session.world();
    log::set_rank(world.rank, world.world_size);
    try {
      const std::unique_ptr<Communicator> communicator = make_cpu_communicator(world);
      install_stop_handlers();
      work(*communicator, health);
    } catch (const AgreedError& error) {
      agreed = error;
    } catch (const Error& error) {
      log::error("{}", error.what());
      session.abort(exit_code(error.kind()));
    } catch (const std::exception& error) {
      log::error("lorashard failed: {}", describe(error));
      session.abort(exit_code(ErrorKind::internal));
    }
  }
  if (agreed) throw *agreed;
}

}  // namespace lorashard
