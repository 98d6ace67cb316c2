// LD_PRELOAD for one rank: stands before at::Tensor::_backward, which every micro-batch calls, and does there what a
// broken host, kernel or program would do. By the environment: SHIM_DO, from the SHIM_FROM-th call on (1), SHIM_TIMES
// times (0: for ever). Built as tests/libtorch_shim.so.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <mpi.h>
#include <unistd.h>

#include <cstdlib>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

namespace {

using Backward = void (*)(const at::Tensor*, at::TensorList, const std::optional<at::Tensor>&, std::optional<bool>, bool);

std::string text_of(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

long number_of(const char* name, long otherwise) {
  const std::string text = text_of(name);
  return text.empty() ? otherwise : std::atol(text.c_str());
}

// The gradient the loss starts from; absent: one.
std::optional<at::Tensor> misbehave(const at::Tensor& loss, const std::optional<at::Tensor>& gradient) {
  static const std::string what = text_of("SHIM_DO");
  if (what == "nan") return at::full_like(loss, std::numeric_limits<double>::quiet_NaN());
  if (what == "inf") return at::full_like(loss, std::numeric_limits<double>::infinity());
  if (what == "sleep") usleep(static_cast<useconds_t>(number_of("SHIM_MS", 200)) * 1000);
  if (what == "throw") throw std::runtime_error("the shim throws");
  if (what == "bad_alloc") throw std::bad_alloc();
  if (what == "exit") std::exit(0);
  if (what == "mpi_abort") MPI_Abort(MPI_COMM_WORLD, 9);
  if (what == "segv") *static_cast<volatile int*>(nullptr) = 1;
  if (what == "hang") pause();
  return gradient;
}

}  // namespace

namespace at {

void Tensor::_backward(TensorList inputs, const std::optional<Tensor>& gradient, std::optional<bool> keep_graph,
                       bool create_graph) const {
  static const auto real = reinterpret_cast<Backward>(
      dlsym(RTLD_NEXT, "_ZNK2at6Tensor9_backwardEN3c108ArrayRefIS0_EERKSt8optionalIS0_ES4_IbEb"));
  static const long from = number_of("SHIM_FROM", 1), times = number_of("SHIM_TIMES", 0);
  static long calls = 0;
  const bool now = ++calls >= from && (times == 0 || calls < from + times);
  real(this, inputs, now ? misbehave(*this, gradient) : gradient, keep_graph, create_graph);
}

}  // namespace at
