// The text an image is trained on: a caption of the image, chosen, dropped and shuffled as the recipe says. Pure: a
// function of the captions, the options and the slot. Called by the loader, and by whoever must know beforehand which
// texts a run will see. The options and their order are those of kohya's sd-scripts (BaseDataset.process_caption of
// library/train_util.py); docs/determinism.md specifies what is drawn.
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "data/sampler.h"

namespace lorashard {

struct CaptionOptions {
  std::string caption_prefix, caption_suffix;  ///< put before and after with a blank between; empty: nothing
  double caption_dropout_rate = 0;             ///< probability that the text is ""
  int64_t caption_dropout_every_n_epochs = 0;  ///< the text is "" in every n-th epoch; 0: never
  bool enable_wildcard = false;                ///< "{a|b}" becomes a or b; "{{" and "}}" are braces
  bool shuffle_caption = false;                ///< the tags that aren't kept in place are shuffled
  int64_t keep_tokens = 0;                     ///< so many tags at the start stay in place
  std::string keep_tokens_separator;           ///< tags before its first and after its second occurrence stay in place
  std::string caption_separator = ",";         ///< between tags; not empty
  std::string secondary_separator;             ///< becomes caption_separator after shuffling: holds tags together
  double caption_tag_dropout_rate = 0;         ///< probability that a tag that isn't kept in place is left out
};

/// The text of `slot`, whose image has the captions `candidates` (at least one). One of several is drawn each time
/// (purpose caption_choice). `class_image`: the class image beside the slot, with its own purposes. Thread-safe.
std::string slot_caption(std::span<const std::string> candidates, const CaptionOptions& options, uint64_t seed,
                         const Slot& slot, bool class_image = false);

/// Whether slot_caption() can give anything but `candidates[0]` of a single candidate.
bool changes_captions(const CaptionOptions& options);

}  // namespace lorashard
