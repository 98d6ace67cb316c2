#include "dist/world.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "dist/error.h"

namespace lorashard {
namespace {

/// Sets variables for one test and takes them away again.
class Environment {
 public:
  explicit Environment(std::initializer_list<std::pair<const char*, const char*>> variables) {
    for (const auto& [name, value] : variables) {
      setenv(name, value, 1);
      names_.push_back(name);
    }
  }
  ~Environment() {
    for (const char* name : names_) unsetenv(name);
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  std::vector<const char*> names_;
};

TEST(World, AProcessThatNobodyStartedAsARankIsAWorldOfOne) {
  const MpiSession session(nullptr, nullptr);
  EXPECT_EQ(session.world().rank, 0);
  EXPECT_EQ(session.world().world_size, 1);
  EXPECT_EQ(session.world().local_rank, 0);
  EXPECT_EQ(session.world().local_world_size, 1);
  EXPECT_FALSE(session.world().hostname.empty());
}

TEST(World, ABatchScriptOfSlurmOrALoneTaskIsAWorldOfOneToo) {
  {
    const Environment batch({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}});
    EXPECT_EQ(MpiSession(nullptr, nullptr).world().world_size, 1);
  }
  const Environment lone({{"SLURM_PROCID", "0"}, {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}});
  EXPECT_EQ(MpiSession(nullptr, nullptr).world().world_size, 1);
}

TEST(World, TasksOfSrunThatDoNotKnowEachOtherAreRefused) {
  const Environment step({{"SLURM_PROCID", "1"}, {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "4"}});
  try {
    const MpiSession session(nullptr, nullptr);
    FAIL() << "four processes would each take themselves for rank 0";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_NE(error.hint().find("--mpi=pmix"), std::string::npos);
  }
}

TEST(World, AbortEndsALoneProcessWithTheCode) {
  const pid_t child = fork();
  if (child == 0) MpiSession(nullptr, nullptr).abort(76);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 76) << status;
}

}  // namespace
}  // namespace lorashard
