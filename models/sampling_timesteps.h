// The numbers that samplers step through, computed as numpy does in diffusers' schedulers, so that roundings fall
// alike: evenly spaced timesteps, noise levels between them, Karras' noise levels. Pure functions, called by the
// schedulers.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lorashard {

/// np.linspace(start, stop, count).
std::vector<double> linspace(double start, double stop, int64_t count);
/// np.arange(start, 0, -step).
std::vector<double> arange_to_zero(double start, double step);

/// `count` timesteps of [0, num_train_timesteps), the noisiest first, as DDIM, PNDM and Euler space them (table 2 of
/// arXiv 2305.08891). `spacing`: "linspace" (not rounded here), "leading" or "trailing". "leading" adds `steps_offset`.
/// Throws Error(bad_data) for another spacing.
std::vector<double> spaced_timesteps(const std::string& spacing, int64_t num_train_timesteps, int64_t count,
                                     int64_t steps_offset);
/// Rounds halves to even, as np.round.
void round_all(std::vector<double>& values);

/// sqrt((1 - acp) / acp) in fp32 of each training timestep.
std::vector<float> train_sigmas(const std::vector<float>& alphas_cumprod);
/// np.interp(position, [0, 1, ...], values).
double interpolate(double position, const std::vector<float>& values);
/// Karras et al. 2022 (arXiv 2206.00364), equation 5 with rho = 7: `count` noise levels from `sigma_max` down.
std::vector<double> karras_sigmas(double sigma_max, double sigma_min, int64_t count);
/// The (fractional) timestep whose noise level is `sigma`, linear in log sigma.
double sigma_to_timestep(double sigma, const std::vector<float>& train_sigmas);

}  // namespace lorashard
