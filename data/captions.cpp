#include "data/captions.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>
#include <vector>

#include "dist/error.h"
#include "dist/philox.h"

namespace lorashard {
namespace {

using Tags = std::vector<std::string>;

// A caption is UTF-8, so these bytes can't be in it: they stand for escaped braces.
constexpr char kOpen = '\xfe', kClose = '\xff';

/// The random numbers of a slot's text.
struct Draws {
  uint64_t seed, slot;
  bool class_image;

  double uniform(Purpose purpose, uint32_t block = 0) const {
    return uniform_at(seed, slot, purpose_of(purpose, class_image), block);
  }
  int64_t choose(int64_t count, Purpose purpose, uint32_t block = 0) const {
    return static_cast<int64_t>(uniform(purpose, block) * static_cast<double>(count));
  }
};

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t next = std::min(text.find(from, at), text.size());
    out += text.substr(at, next - at);
    if (next < text.size()) out += to;
    at = next + from.size();
  }
  return out;
}

std::vector<std::string_view> split(std::string_view text, std::string_view separator) {
  std::vector<std::string_view> parts;
  for (size_t next = text.find(separator); next != std::string_view::npos; next = text.find(separator)) {
    parts.push_back(text.substr(0, next));
    text.remove_prefix(next + separator.size());
  }
  parts.push_back(text);
  return parts;
}

std::string_view strip(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\n\r\v\f";
  const size_t begin = std::min(text.find_first_not_of(kBlanks), text.size());
  return text.substr(begin, text.find_last_not_of(kBlanks) + 1 - begin);
}

/// "{a|b}" to one of its choices; the k-th of the text takes block k.
std::string choose_wildcards(std::string_view caption, const Draws& draws) {
  const std::string text =
      replace_all(replace_all(caption, "{{", std::string_view(&kOpen, 1)), "}}", std::string_view(&kClose, 1));
  std::string out;
  uint32_t block = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t open = text.find('{', at);
    const size_t close = open == std::string::npos ? open : text.find('}', open + 2);  // at least one byte between
    if (close == std::string::npos || text[open + 1] == '}') {
      const size_t end = open == std::string::npos || close == std::string::npos ? text.size() : open + 1;
      out.append(text, at, end - at);
      at = end;
      continue;
    }
    out.append(text, at, open - at);
    const auto choices = split(std::string_view(text).substr(open + 1, close - open - 1), "|");
    out += choices[draws.choose(std::ssize(choices), Purpose::caption_wildcard, block++)];
    at = close + 1;
  }
  return replace_all(replace_all(out, std::string_view(&kOpen, 1), "{"), std::string_view(&kClose, 1), "}");
}

/// Tags that stay in place, those that may move or go, and those that stay at the end.
struct CutCaption {
  Tags kept, free, kept_at_end;
};

CutCaption cut_caption(std::string_view caption, const CaptionOptions& options) {
  const auto tags_of = [&](std::string_view part, bool keep_empty) {
    Tags tags;
    for (const std::string_view tag : split(part, options.caption_separator))
      if (keep_empty || !strip(tag).empty()) tags.emplace_back(strip(tag));
    return tags;
  };
  const std::string& mark = options.keep_tokens_separator;
  const size_t first = mark.empty() ? std::string_view::npos : caption.find(mark);
  CutCaption cut;
  if (first != std::string_view::npos) {
    std::string_view rest = caption.substr(first + mark.size());
    const size_t second = rest.find(mark);
    if (second != std::string_view::npos) cut.kept_at_end = tags_of(rest.substr(second + mark.size()), false);
    cut.kept = tags_of(caption.substr(0, first), false);
    cut.free = tags_of(rest.substr(0, second), false);
  } else {
    cut.free = tags_of(strip(caption), true);
    const auto kept = std::min<int64_t>(options.keep_tokens, std::ssize(cut.free));
    cut.kept.assign(std::make_move_iterator(cut.free.begin()), std::make_move_iterator(cut.free.begin() + kept));
    cut.free.erase(cut.free.begin(), cut.free.begin() + kept);
  }
  return cut;
}

/// Fisher and Yates from the end: tag i changes places with one of 0 ... i, drawn from block i.
void shuffle(Tags* tags, const Draws& draws) {
  for (int64_t i = std::ssize(*tags) - 1; i > 0; --i)
    std::swap((*tags)[i], (*tags)[draws.choose(i + 1, Purpose::caption_shuffle, static_cast<uint32_t>(i))]);
}

void drop_tags(Tags* tags, double rate, const Draws& draws) {
  Tags left;
  for (uint32_t i = 0; i < tags->size(); ++i)
    if (draws.uniform(Purpose::caption_tag_dropout, i) >= rate) left.push_back(std::move((*tags)[i]));
  *tags = std::move(left);
}

std::string arrange_tags(const std::string& caption, const CaptionOptions& options, const Draws& draws) {
  CutCaption cut = cut_caption(caption, options);
  if (options.shuffle_caption) shuffle(&cut.free, draws);
  if (options.caption_tag_dropout_rate > 0) drop_tags(&cut.free, options.caption_tag_dropout_rate, draws);
  std::string joined;
  bool first = true;
  for (const Tags* tags : {&cut.kept, &cut.free, &cut.kept_at_end})
    for (const std::string& tag : *tags) {
      joined += (std::exchange(first, false) ? "" : ", ") + tag;  // whatever the separator was, as sd-scripts joins
    }
  return joined;
}

}  // namespace

bool changes_captions(const CaptionOptions& options) {
  return !options.caption_prefix.empty() || !options.caption_suffix.empty() || options.caption_dropout_rate > 0 ||
         options.caption_dropout_every_n_epochs > 0 || options.enable_wildcard || options.shuffle_caption ||
         !options.secondary_separator.empty() || options.caption_tag_dropout_rate > 0;
}

std::string slot_caption(std::span<const std::string> candidates, const CaptionOptions& options, uint64_t seed,
                         const Slot& slot, bool class_image) {
  LORASHARD_CHECK(!candidates.empty() && !options.caption_separator.empty(), "a caption out of {}", candidates.size());
  const Draws draws{seed, slot.slot, class_image};
  const bool several = candidates.size() > 1;
  std::string caption = candidates[several ? draws.choose(std::ssize(candidates), Purpose::caption_choice) : 0];
  if (!options.caption_prefix.empty()) caption = options.caption_prefix + " " + caption;
  if (!options.caption_suffix.empty()) caption += " " + options.caption_suffix;

  const int64_t every = options.caption_dropout_every_n_epochs;
  if (every > 0 && (slot.epoch + 1) % every == 0) return "";  // the epochs count from 1 here
  if (options.caption_dropout_rate > 0 && draws.uniform(Purpose::caption_dropout) < options.caption_dropout_rate) return "";

  if (options.enable_wildcard) caption = choose_wildcards(caption, draws);
  if (options.shuffle_caption || options.caption_tag_dropout_rate > 0)
    caption = arrange_tags(caption, options, draws);
  if (!options.secondary_separator.empty())
    caption = replace_all(caption, options.secondary_separator, options.caption_separator);
  return caption;
}

}  // namespace lorashard
