// Apart from the schedulers, so that a recipe can be checked without them.
#include "models/sampling_scheduler.h"

namespace lorashard {

const std::vector<std::string>& sampling_scheduler_names() {
  static const std::vector<std::string> names = {"dpmsolver++", "ddim", "euler", "pndm"};
  return names;
}

}  // namespace lorashard
