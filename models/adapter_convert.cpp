#include "models/adapter_convert.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "dist/error.h"
#include "models/adapter_apply.h"

namespace lorashard {
namespace {

/// The shape of the weight a module belongs to, from its own tensors; empty where they don't say it (Tucker forms do,
/// matrices of convolutions don't).
std::vector<int64_t> own_sizes(const AdapterModule& module) {
  if (module.kind == AdapterKind::lora) {
    std::vector<int64_t> sizes = module.tensors.at(module.has("mid") ? "mid" : "down").sizes().vec();
    sizes[0] = module.tensors.at("up").size(0);
    sizes[1] = module.tensors.at("down").size(1);
    return sizes;
  }
  if (module.kind == AdapterKind::full && module.has("diff")) return module.tensors.at("diff").sizes().vec();
  if (module.kind == AdapterKind::loha) {
    const auto &a = module.tensors.at("hada_w1_a"), &b = module.tensors.at("hada_w1_b");
    if (!module.has("hada_t1")) return {a.size(0), b.size(1)};
    const auto& t = module.tensors.at("hada_t1");
    return {a.size(1), b.size(1), t.size(2), t.size(3)};
  }
  if (module.kind != AdapterKind::lokr) return {};
  const auto size = [&](const char* whole, const char* part, int64_t dim) {
    return module.has(whole) ? module.tensors.at(whole).size(dim) : module.tensors.at(part).size(dim);
  };
  const int64_t w1_out = size("lokr_w1", "lokr_w1_a", 0), w1_in = size("lokr_w1", "lokr_w1_b", 1);
  if (module.has("lokr_t2")) {
    const auto& t = module.tensors.at("lokr_t2");
    return {w1_out * module.tensors.at("lokr_w2_a").size(1), w1_in * module.tensors.at("lokr_w2_b").size(1), t.size(2),
            t.size(3)};
  }
  std::vector<int64_t> sizes = {w1_out * size("lokr_w2", "lokr_w2_a", 0), w1_in * size("lokr_w2", "lokr_w2_b", 1)};
  if (module.has("lokr_w2") && module.tensors.at("lokr_w2").dim() == 4)
    for (int64_t d = 2; d < 4; ++d) sizes.push_back(module.tensors.at("lokr_w2").size(d));
  return sizes;
}

/// 3x3 convolutions whose factors are matrices: [out, in * 9] belongs to [out, in, 3, 3].
std::vector<int64_t> with_kernel(std::vector<int64_t> sizes, const std::string& path) {
  const auto ends = [&](const char* end) { return path.ends_with(end); };
  const bool three = ends(".conv1") || ends(".conv2") || ends("samplers.0.conv") || path == "conv_in" || path == "conv_out";
  if (sizes.size() == 2 && three && sizes[1] % 9 == 0) return {sizes[0], sizes[1] / 9, 3, 3};
  if (sizes.size() == 2 && ends(".conv_shortcut")) return {sizes[0], sizes[1], 1, 1};
  return sizes;
}

bool is_output_axis(const at::Tensor& dora_scale, int64_t outputs) { return dora_scale.size(0) == outputs && outputs > 1; }

[[noreturn]] void refuse(ErrorKind kind, const AdapterModule& module, const std::string& fault, const std::string& hint) {
  throw Error(kind, fmt::format("converting '{}' of {}: {}", module.path, module.component, fault), hint);
}

struct Squares {
  double error = 0, whole = 0;
};

/// The best pair of `rank` for `delta` (Eckart and Young), the singular values shared evenly.
AdapterModule by_singular_values(const AdapterModule& module, const at::Tensor& delta, int64_t rank, Squares& squares) {
  const at::Tensor matrix = delta.flatten(1).to(at::kDouble);
  const auto [u, s, v] = at::linalg_svd(matrix, /*full_matrices=*/false);
  rank = std::min(rank, s.size(0));
  const at::Tensor root = s.narrow(0, 0, rank).sqrt();
  const at::Tensor up = u.narrow(1, 0, rank) * root, down = root.unsqueeze(1) * v.narrow(0, 0, rank);
  std::vector<int64_t> down_sizes = delta.sizes().vec(), up_sizes(down_sizes.size(), 1);
  up_sizes[0] = down_sizes[0];
  down_sizes[0] = up_sizes[1] = rank;
  const double rest = s.narrow(0, rank, s.size(0) - rank).square().sum().item<double>();
  squares = {rest, s.square().sum().item<double>()};
  AdapterModule pair{.component = module.component, .path = module.path};
  pair.tensors["down"] = down.to(at::kFloat).reshape(down_sizes).contiguous();
  pair.tensors["up"] = up.to(at::kFloat).reshape(up_sizes).contiguous();
  pair.alpha = static_cast<double>(rank);
  return pair;
}

/// A LoCon's down and mid as one down: exact.
AdapterModule without_mid(const AdapterModule& module) {
  AdapterModule pair = module;
  const at::Tensor down = module.tensors.at("down"), mid = module.tensors.at("mid");
  pair.tensors["down"] =
      at::einsum("orkl,ri->oikl", {mid.to(at::kFloat), down.flatten(1).to(at::kFloat)}).to(down.scalar_type());
  pair.tensors.erase("mid");
  return pair;
}

}  // namespace

ConvertResult as_lora(const Adapter& adapter, const ConvertOptions& options) {
  const at::NoGradGuard no_grad;
  ConvertResult result;
  result.adapter = {.format = adapter.format, .modules = {}, .metadata = adapter.metadata, .skipped = adapter.skipped};
  Squares all;
  for (const AdapterModule& module : adapter.modules) {
    if (module.has("diff_b")) refuse(ErrorKind::bad_data, module, "it changes the bias, which no LoRA pair does", "`lorashard fuse` applies it");
    const at::Tensor weight = options.weight_of ? options.weight_of(module.component, module.path) : at::Tensor();
    const std::vector<int64_t> sizes =
        weight.defined() ? weight.sizes().vec() : with_kernel(own_sizes(module), module.path);
    const bool dora = module.has("dora_scale");
    const bool keeps_dora = dora && !options.resolve_dora && is_output_axis(module.tensors.at("dora_scale"), sizes[0]);
    if (dora && !keeps_dora && !(options.resolve_dora && weight.defined() && options.rank > 0))
      refuse(ErrorKind::bad_data, module, "its DoRA scales inputs (LyCORIS' older kind), which only LyCORIS files hold",
             "--resolve-dora --base DIR --rank N makes a plain pair of it");
    if (module.kind == AdapterKind::lora && (!dora || keeps_dora)) {
      result.adapter.modules.push_back(module.has("mid") ? without_mid(module) : module);
      continue;
    }
    if (options.rank < 1)
      refuse(ErrorKind::usage, module, fmt::format("only singular values make a LoRA pair of a {}", to_string(module.kind)),
             "give the rank they are cut at: --rank N");
    Squares squares;
    const at::Tensor delta = dora && !keeps_dora ? delta_weight(module, weight) : low_rank_delta(module, sizes);
    AdapterModule pair = by_singular_values(module, delta, options.rank, squares);
    if (keeps_dora) pair.tensors["dora_scale"] = module.tensors.at("dora_scale");
    result.adapter.modules.push_back(std::move(pair));
    const double error = squares.whole > 0 ? std::sqrt(squares.error / squares.whole) : 0;
    if (result.num_approximated++ == 0 || error > result.worst_error) {
      result.worst_error = error;
      result.worst_layer = module.component + "." + module.path;
    }
    all.error += squares.error;
    all.whole += squares.whole;
  }
  result.error = all.whole > 0 ? std::sqrt(all.error / all.whole) : 0;
  return result;
}

}  // namespace lorashard
