#include "dist/activity.h"

namespace lorashard {

const char* name_of(Collective collective) {
  switch (collective) {
    case Collective::none:
      return "";
    case Collective::all_reduce:
      return "all_reduce";
    case Collective::broadcast:
      return "broadcast";
    case Collective::all_gather:
      return "all_gather";
    case Collective::barrier:
      return "barrier";
    case Collective::finalize:
      return "MPI_Finalize";
  }
  return "";
}

Activity& activity() {
  static Activity instance;
  return instance;
}

InCollective::InCollective(Collective collective) {
  Activity& mine = activity();
  mine.number.fetch_add(1, std::memory_order_relaxed);
  mine.collective.store(collective, std::memory_order_relaxed);
  mine.progress.fetch_add(1, std::memory_order_release);
}

InCollective::~InCollective() {
  Activity& mine = activity();
  mine.collective.store(Collective::none, std::memory_order_relaxed);
  mine.progress.fetch_add(1, std::memory_order_release);
}

}  // namespace lorashard
