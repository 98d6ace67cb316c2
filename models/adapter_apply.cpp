#include "models/adapter_apply.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <utility>
#include <vector>

#include "dist/error.h"

namespace lorashard {
namespace {

[[noreturn]] void refuse(const AdapterModule& module, const std::string& fault) {
  throw Error(ErrorKind::bad_data, fmt::format("applying an adapter to '{}' of {}: {}", module.path, module.component, fault),
              "the adapter belongs to another base model (SD 1.x, 2.x and XL have layers of other sizes)");
}

at::Tensor fp32(const AdapterModule& module, const std::string& tensor) {
  return module.tensors.at(tensor).to(at::kFloat);
}

at::Tensor matrix(const at::Tensor& tensor) { return tensor.flatten(1); }

/// LyCORIS' Tucker form: t [r, r, k, k], a [r, out], b [r, in] -> [out, in, k, k].
at::Tensor tucker(const at::Tensor& t, const at::Tensor& a, const at::Tensor& b) {
  return at::einsum("ijkl,jr,ip->prkl", {t, b, a});
}

at::Tensor lora_product(const AdapterModule& module) {
  const at::Tensor up = matrix(fp32(module, "up")), down = fp32(module, "down");
  if (!module.has("mid")) return at::mm(up, matrix(down));
  // down is 1x1, mid has the kernel: their composition is a down with the kernel.
  const at::Tensor mid = fp32(module, "mid");
  const at::Tensor whole = at::einsum("orkl,ri->oikl", {mid, matrix(down)});
  return at::mm(up, matrix(whole));
}

at::Tensor loha_product(const AdapterModule& module) {
  const auto factor = [&](const std::string& w, const char* t) {
    const at::Tensor a = fp32(module, w + "_a"), b = fp32(module, w + "_b");
    return module.has(t) ? tucker(fp32(module, t), a, b) : at::mm(a, b);
  };
  return factor("hada_w1", "hada_t1") * factor("hada_w2", "hada_t2");
}

at::Tensor lokr_product(const AdapterModule& module) {
  const at::Tensor w1 = module.has("lokr_w1") ? fp32(module, "lokr_w1")
                                              : at::mm(fp32(module, "lokr_w1_a"), fp32(module, "lokr_w1_b"));
  at::Tensor w2;
  if (module.has("lokr_w2"))
    w2 = fp32(module, "lokr_w2");
  else if (module.has("lokr_t2"))
    w2 = tucker(fp32(module, "lokr_t2"), fp32(module, "lokr_w2_a"), fp32(module, "lokr_w2_b"));
  else
    w2 = at::mm(fp32(module, "lokr_w2_a"), matrix(fp32(module, "lokr_w2_b")));
  // The kernel belongs to w2; it lies at the end of each row, so the product of the matrices is that of the kernels.
  // Contiguous because kron views its factors and einsum answers in any order.
  return at::kron(matrix(w1), matrix(w2).contiguous());
}

/// Norms over what dora_scale has no dimension for: all but the outputs, or (the older kind) all but the inputs.
at::Tensor dora_norm_like(const at::Tensor& weight, const at::Tensor& dora_scale) {
  std::vector<int64_t> over;
  const int64_t kept = dora_scale.size(0) == weight.size(0) ? 0 : 1;
  for (int64_t d = 0; d < weight.dim(); ++d)
    if (d != kept) over.push_back(d);
  return at::linalg_vector_norm(weight, 2, at::IntArrayRef(over), /*keepdim=*/true);
}

bool is_dora_scale_of(const at::Tensor& dora_scale, const at::Tensor& weight) {
  if (dora_scale.dim() != weight.dim()) return false;
  const int64_t kept = dora_scale.size(0) == weight.size(0) ? 0 : 1;
  return dora_scale.size(kept) == weight.size(kept) && dora_scale.numel() == weight.size(kept);
}

void add_layers(AdaptableLayers& all, const std::string& component, torch::nn::Module& model) {
  for (const auto& item : model.named_modules("", /*include_self=*/false))
    if (auto* layer = dynamic_cast<AdaptableLayer*>(item.value().get())) all[component][item.key()] = layer;
}

/// A weight in its own type plus something in fp32.
at::Tensor sum(const at::Tensor& weight, const at::Tensor& delta) {
  return (weight.to(at::kFloat) + delta.to(weight.device())).to(weight.scalar_type());
}

}  // namespace

at::Tensor low_rank_delta(const AdapterModule& module, at::IntArrayRef sizes) {
  at::Tensor product;
  try {
    switch (module.kind) {
      case AdapterKind::lora: product = lora_product(module); break;
      case AdapterKind::loha: product = loha_product(module); break;
      case AdapterKind::lokr: product = lokr_product(module); break;
      case AdapterKind::full:
        product = module.has("diff") ? fp32(module, "diff") : at::zeros(sizes, at::kFloat);
    }
  } catch (const c10::Error& error) {
    refuse(module, fmt::format("the tensors don't fit each other: {}", error.what_without_backtrace()));
  }
  if (product.numel() != c10::multiply_integers(sizes) || product.size(0) != sizes[0])
    refuse(module, fmt::format("the layer's weight is [{}], the adapter's product [{}]", fmt::join(sizes, ", "),
                               fmt::join(product.sizes(), ", ")));
  product = product.reshape(sizes);
  return module.scale() == 1 || module.kind == AdapterKind::full ? product : product * module.scale();
}

at::Tensor delta_weight(const AdapterModule& module, const at::Tensor& weight, double scale) {
  const at::NoGradGuard no_grad;
  at::Tensor delta = low_rank_delta(module, weight.sizes());
  if (module.has("dora_scale")) {
    const at::Tensor old = weight.to(at::kFloat).cpu(), dora_scale = fp32(module, "dora_scale");
    if (!is_dora_scale_of(dora_scale, weight))
      refuse(module, fmt::format("the layer's weight is [{}], dora_scale [{}]", fmt::join(weight.sizes(), ", "),
                                 fmt::join(dora_scale.sizes(), ", ")));
    const at::Tensor moved = old + delta;
    delta = moved * (dora_scale / dora_norm_like(moved, dora_scale)) - old;
  }
  return scale == 1 ? delta : delta * scale;
}

AdaptableLayers adaptable_layers(const StableDiffusion& base) {
  AdaptableLayers layers;
  add_layers(layers, "unet", *base.unet);
  add_layers(layers, "text_encoder", *base.text_encoder);
  if (base.is_sdxl()) add_layers(layers, "text_encoder_2", *base.text_encoder_2);
  return layers;
}

ModuleNames module_names(const StableDiffusion& base) {
  ModuleNames names;
  for (const auto& [component, layers] : adaptable_layers(base)) {
    std::vector<std::string> paths;
    for (const auto& [path, layer] : layers) paths.push_back(path);
    names.add(component, paths, base.unet->config().layers_per_block);
  }
  return names;
}

void apply_adapter(StableDiffusion& base, const Adapter& adapter, double scale) {
  if (scale == 0) return;
  const at::NoGradGuard no_grad;
  const AdaptableLayers layers = adaptable_layers(base);
  std::vector<std::pair<at::Tensor, at::Tensor>> changes;  // a parameter and its new values
  for (const AdapterModule& module : adapter.modules) {
    const auto component = layers.find(module.component);
    if (component == layers.end()) refuse(module, "the base has no such model");
    const auto layer = component->second.find(module.path);
    if (layer == component->second.end()) refuse(module, "the base has no such layer");
    const at::Tensor& weight = layer->second->weight;
    changes.emplace_back(weight, sum(weight, delta_weight(module, weight, scale)));
    if (!module.has("diff_b")) continue;
    const at::Tensor& bias = layer->second->bias;
    const at::Tensor diff = fp32(module, "diff_b");
    if (!bias.defined() || bias.sizes() != diff.sizes()) refuse(module, "the layer has no bias of diff_b's size");
    changes.emplace_back(bias, sum(bias, diff * scale));
  }
  for (auto& [parameter, value] : changes) parameter.set_data(value);
}

}  // namespace lorashard
