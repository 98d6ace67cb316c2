// Weights saved by torch.save (.bin, .pt, .pth, .ckpt), read by LibTorch's own reader: it builds tensors and containers
// and nothing else. It knows no Python, so a pickle that asks for a call of anything else is an error, not a call.
#pragma once
#include <filesystem>

#include "models/safetensors.h"

namespace lorashard {

/// The tensors of a state dict; a "state_dict" inside is followed. Throws Error(bad_data) for files of torch before
/// 1.6 (no zip archive), for objects other than tensors and for damaged ones; Error(usage) where there is no file.
StateDict read_torch_pickle(const std::filesystem::path& path);

}  // namespace lorashard
