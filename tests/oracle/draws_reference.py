"""Captions and timesteps of slots a second time, as docs/determinism.md specifies them; options are the recipe's tables."""

import bisect
import re

import torch
import torch.nn.functional as F

import philox_reference as philox


def choose(seed, slot, purpose, block, count):
    return int(philox.uniform(seed, slot, purpose, block) * count)


def caption(candidates, options, seed, slot, epoch, shift=0):
    """sd-scripts' BaseDataset.process_caption, its random numbers drawn from Philox; `shift` of the purposes for class images."""
    several = len(candidates) > 1
    text = candidates[choose(seed, slot, philox.CAPTION_CHOICE + shift, 0, len(candidates)) if several else 0]
    if options.get("caption_prefix"):
        text = options["caption_prefix"] + " " + text
    if options.get("caption_suffix"):
        text = text + " " + options["caption_suffix"]
    every = options.get("caption_dropout_every_n_epochs", 0)
    dropped = options.get("caption_dropout_rate", 0) > philox.uniform(seed, slot, philox.CAPTION_DROPOUT + shift)
    if dropped or every > 0 and (epoch + 1) % every == 0:
        return ""
    if options.get("enable_wildcard"):
        text = _wildcards(text, seed, slot, shift)
    tag_rate, shuffled = options.get("caption_tag_dropout_rate", 0), options.get("shuffle_caption")
    separator = options.get("caption_separator", ",")
    if shuffled or tag_rate > 0:
        kept, free, kept_at_end = _cut(text, separator, options.get("keep_tokens", 0), options.get("keep_tokens_separator"))
        if shuffled:
            for i in range(len(free) - 1, 0, -1):
                j = choose(seed, slot, philox.CAPTION_SHUFFLE + shift, i, i + 1)
                free[i], free[j] = free[j], free[i]
        free = [tag for i, tag in enumerate(free)
                if tag_rate <= 0 or philox.uniform(seed, slot, philox.CAPTION_TAG_DROPOUT + shift, i) >= tag_rate]
        text = ", ".join(kept + free + kept_at_end)
    if options.get("secondary_separator"):
        text = text.replace(options["secondary_separator"], separator)
    return text


def _wildcards(text, seed, slot, shift):
    text = text.replace("{{", "\ue000").replace("}}", "\ue001")
    count = iter(range(10**6))

    def replace(match):
        choices = match.group(1).split("|")
        return choices[choose(seed, slot, philox.CAPTION_WILDCARD + shift, next(count), len(choices))]

    return re.sub(r"\{([^}]+)\}", replace, text).replace("\ue000", "{").replace("\ue001", "}")


def _cut(text, separator, keep, mark):
    split = lambda part: [tag.strip() for tag in part.split(separator) if tag.strip()]
    if mark and mark in text:
        fixed, free = text.split(mark, 1)
        free, _, end = free.partition(mark)
        return split(fixed), split(free), split(end)
    tags = [tag.strip() for tag in text.strip().split(separator)]
    return tags[:keep], tags[keep:], []


def timestep_weights(options, count):
    """generate_timestep_weights of diffusers' train_text_to_image_sdxl.py, not normalised, and 0 outside min to max."""
    weights = [1.0] * count
    portion = int(options.get("timestep_bias_portion", 0.25) * count)
    part = {"none": slice(0, 0), "earlier": slice(0, portion), "later": slice(-portion, None),
            "range": slice(options.get("timestep_bias_begin", 0), options.get("timestep_bias_end", 1000)),
            }[options.get("timestep_bias_strategy", "none")]
    weights[part] = [options.get("timestep_bias_multiplier", 1.0)] * len(weights[part])
    low, high = options.get("min_timestep", 0), options.get("max_timestep", 0) or count
    return [weight if low <= t < high else 0.0 for t, weight in enumerate(weights)]


def timestep(options, count, seed, slot, shift=0):
    low, high = options.get("min_timestep", 0), options.get("max_timestep", 0) or count
    if options.get("timestep_bias_strategy", "none") == "none":
        return low + philox.uniform_int(seed, slot, philox.TIMESTEP + shift, high - low)
    cumulative, total = [], 0.0
    for weight in timestep_weights(options, count)[low:high]:
        total += weight
        cumulative.append(total)
    found = bisect.bisect_right(cumulative, philox.uniform(seed, slot, philox.TIMESTEP + shift) * total)
    return low + min(found, high - low - 1)


def multires_noise(noise, iterations, discount, seed, slot, shift=0):
    """pyramid_noise_like of sd-scripts in fp32 on one image's noise [channels, height, width], its random numbers drawn from Philox."""
    channels, *sides = noise.shape
    total = noise[None].clone()
    for level in range(iterations):
        ratio = 2 + 2 * philox.uniform(seed, slot, philox.MULTIRES_NOISE_RATIO + shift, level)
        smaller = [max(1, int(side / ratio**level)) for side in sides]
        drawn = torch.from_numpy(philox.normal(seed, slot, philox.MULTIRES_NOISE + shift + (level << 16), (channels, *smaller)))
        total += F.interpolate(drawn[None], size=sides, mode="bilinear") * discount**level
        if 1 in smaller:
            break
    return (total / total.std())[0]
