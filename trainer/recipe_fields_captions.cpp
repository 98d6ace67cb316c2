// Keys of [captions].
#include "trainer/recipe_checks.h"

namespace lorashard {

void add_caption_fields(Fields& f, Recipe& r) {
  Recipe::Captions& c = r.captions;
  f.push_back({"captions", "caption_prefix", &c.caption_prefix, anything(), kIdentity,
               "Text before every caption, with a blank between. This comes first, then dropout, then wildcards, then tags."});
  f.push_back({"captions", "caption_suffix", &c.caption_suffix, anything(), kIdentity,
               "Text after every caption, with a blank between."});
  f.push_back({"captions", "caption_dropout_rate", &c.caption_dropout_rate, between(0, 1), kIdentity,
               "Probability that an image is trained with an empty caption, which classifier-free guidance needs."});
  f.push_back({"captions", "caption_dropout_every_n_epochs", &c.caption_dropout_every_n_epochs, at_least(0), kIdentity,
               "Train every so many epochs (counted from 1) with empty captions. 0: never."});
  f.push_back({"captions", "enable_wildcard", &c.enable_wildcard, anything(), kIdentity,
               "\"{red|green} apple\" is trained as one of its choices, drawn anew each time; {{ and }} are braces."});
  f.push_back({"captions", "shuffle_caption", &c.shuffle_caption, anything(), kIdentity,
               "Shuffle a caption's tags each time."});
  f.push_back({"captions", "keep_tokens", &c.keep_tokens, at_least(0), kIdentity,
               "Tags at the start that shuffle_caption and caption_tag_dropout_rate leave alone."});
  f.push_back({"captions", "keep_tokens_separator", &c.keep_tokens_separator, anything(), kIdentity,
               "Such as \"|||\": in a caption that has it, tags before the first and after the second are left alone, "
               "instead of keep_tokens."});
  f.push_back({"captions", "caption_separator", &c.caption_separator, not_empty(), kIdentity,
               "What separates tags. Tags are joined again with a comma and a blank."});
  f.push_back({"captions", "secondary_separator", &c.secondary_separator, anything(), kIdentity,
               "Such as \";;;\": holds tags together while they are shuffled, then becomes caption_separator."});
  f.push_back({"captions", "caption_tag_dropout_rate", &c.caption_tag_dropout_rate, between(0, 1), kIdentity,
               "Probability that a tag is left out."});
}

}  // namespace lorashard
