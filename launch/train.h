// One rank of a training, for `lorashard train` and `lorashard bench`.
#pragma once
#include <functional>

#include "dist/communicator.h"
#include "trainer/recipe.h"

namespace lorashard {

/// Reads the recipe by `read`, on every rank, and trains it as one of the ranks of mpirun or srun, or alone. `before` runs on every rank
/// once all are there with the same program, before anything of the recipe is touched; `after` when the training is done.
struct TrainingRank {
  std::function<Recipe()> read;
  std::function<void(Communicator&)> before = {}, after = {};
};
void train_as_rank(const TrainingRank& rank);

}  // namespace lorashard
