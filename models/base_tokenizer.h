// Where a base's tokenizer comes from: its own folder, another one, or CLIP's vocabulary file (a single file has no tokenizer).
// Used by models/diffusers_folder.cpp, models/single_file.cpp and models/stable_diffusion.cpp.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "models/clip_tokenizer.h"
#include "models/model_config.h"

namespace lorashard {

struct TokenizerSource {
  std::filesystem::path path;  ///< a tokenizer's folder, or bpe_simple_vocab_16e6.txt.gz
  std::string pad_token = {};  ///< overrides the folder's; of the vocabulary file there is no other
};

/// What pads before this text encoder: "<|endoftext|>" for OpenAI's CLIP (quick_gelu), "!" for OpenCLIP's, as SD 1.x, 2.x and
/// SDXL have it.
std::string pad_token_of(const CLIPTextConfig& text_encoder);

/// `given`, for the tokenizer named `name` ("tokenizer" or "tokenizer_2") of `text_encoder`: a vocabulary file, a pipeline's
/// folder that holds `name`/ (or tokenizer/), or a tokenizer's own folder. What wasn't made for this encoder by its name pads by
/// pad_token_of(). Throws Error(usage) when there is nothing.
TokenizerSource find_tokenizer(const std::filesystem::path& given, const std::string& name,
                               const CLIPTextConfig& text_encoder);

/// Throws Error(usage) or Error(bad_data) naming what is wrong with it.
std::shared_ptr<CLIPTokenizer> make_tokenizer(const TokenizerSource& source);

/// A file that belongs to a base's identity: its name in the hash, which says nothing of where the base lies, and its place.
using NamedFile = std::pair<std::string, std::filesystem::path>;

/// Appends the files that make_tokenizer() may read and that are there, as "`name`/<file name>".
void add_tokenizer_files(std::vector<NamedFile>& files, const std::string& name, const TokenizerSource& source);

}  // namespace lorashard
