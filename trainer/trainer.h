// A run: built in order from a resolved recipe, then train(). trainer.cpp's train_step() is the whole of training, top to bottom.
#pragma once
#include <memory>

#include "dist/communicator.h"
#include "trainer/recipe.h"

namespace lorashard {

class Trainer {
 public:
  /// Collective over `communicator`, which must outlive it. Throws before step 0 for everything that can be known then.
  Trainer(const Recipe& recipe, Communicator& communicator);
  ~Trainer();
  /// Runs to max_train_steps; writes checkpoints, metrics, trace and the adapter.
  void train();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lorashard
