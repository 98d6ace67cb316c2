#include "trainer/ema.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dist/error.h"

namespace lorashard {
namespace {

TEST(Ema, DecayFollowsTheFormulasOfItsTwoKinds) {
  Recipe::Ema options;
  options.ema_update_after_step = 3;
  EXPECT_EQ(ema_decay_at(options, 4), 0.0);
  EXPECT_EQ(ema_decay_at(options, 5), 2.0 / 11.0);
  EXPECT_EQ(ema_decay_at(options, 1'000'000'000), 0.9999);
  options.use_ema_warmup = true;
  options.ema_power = 0.75;
  options.ema_inv_gamma = 2;
  EXPECT_EQ(ema_decay_at(options, 8), 1 - std::pow(1 + 4.0 / 2, -0.75));
  options.ema_min_decay = 0.9;
  EXPECT_EQ(ema_decay_at(options, 5), 0.9);
  EXPECT_EQ(ema_decay_at(options, 4), 0.0);
}

TEST(Ema, IsTheParametersUntilAveragingBeginsAndGoesOnFromItsState) {
  Recipe::Ema options;
  const at::Tensor start = at::arange(5, at::kFloat);
  Ema whole(start, options), before(start, options), after(start, options);
  const auto average = [](const Ema& ema) { return ema.state().tensors.at("parameters"); };
  for (int64_t update = 1; update <= 6; ++update) {
    const at::Tensor parameters = start + static_cast<double>(update);
    whole.step(parameters, update);
    if (update == 1) {
      EXPECT_TRUE(at::equal(average(whole), parameters));
    }
    (update <= 3 ? before : after).step(parameters, update);
    if (update == 3) after.load(before.state());
  }
  EXPECT_TRUE(at::equal(average(whole), average(after)));
  EXPECT_FALSE(at::equal(average(whole), start + 6));
}

TEST(Ema, TheAverageTakesTheParametersPlaceForAWhile) {
  const at::Tensor parameters = at::full({3}, 2.0);
  Ema ema(at::ones({3}), {});
  {
    const AverageInPlace average(&ema, parameters);
    EXPECT_TRUE(at::equal(parameters, at::ones({3})));
  }
  EXPECT_TRUE(at::equal(parameters, at::full({3}, 2.0)));
  const AverageInPlace none(nullptr, parameters);
  EXPECT_TRUE(at::equal(parameters, at::full({3}, 2.0)));
}

TEST(Ema, AStateOfAnotherLengthIsRefused) {
  Ema ema(at::zeros({5}), {}), other(at::zeros({6}), {});
  EXPECT_THROW(ema.load(other.state()), Error);
  EXPECT_THROW(ema.load({}), Error);
}

}  // namespace
}  // namespace lorashard
