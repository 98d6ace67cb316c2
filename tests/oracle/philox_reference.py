"""The random numbers of a run a second time, in numpy, as docs/determinism.md specifies them."""

import numpy as np

PERMUTATION, CROP, FLIP, CAPTION_CHOICE, CAPTION_DROPOUT, VAE_SAMPLE, NOISE, TIMESTEP = range(1, 9)
NOISE_OFFSET, INPUT_PERTURBATION, LORA_INIT, LORA_DROPOUT = 9, 10, 11, 12
CAPTION_SHUFFLE, CAPTION_TAG_DROPOUT, CAPTION_WILDCARD, NOISE_OFFSET_STRENGTH, INPUT_PERTURBATION_STRENGTH = range(20, 25)
MULTIRES_NOISE, MULTIRES_NOISE_RATIO, RANK_DROPOUT, MODULE_DROPOUT, HELD_OUT_ROWS, HELD_OUT_NOISE = range(25, 31)
BUCKET_ORDER, BUCKET_IMAGES = 31, 32
CLASS_IMAGE = 0x8000

_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32_10(counter, key):
    """`counter`: four words, each an int or an array of one shape; `key`: two ints. Four uint64 arrays below 2^32."""
    c = [np.asarray(word, dtype=np.uint64) for word in counter]
    key = [int(word) for word in key]
    for _ in range(10):
        product0, product1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(product1 >> _HALF) ^ c[1] ^ np.uint64(key[0]), product1 & _MASK,
             (product0 >> _HALF) ^ c[3] ^ np.uint64(key[1]), product0 & _MASK]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def words(seed, slot, purpose, block):
    """The block(s) `block` of (seed, slot, purpose)."""
    return philox4x32_10((slot & 0xFFFFFFFF, slot >> 32, purpose, block), (seed & 0xFFFFFFFF, seed >> 32))


def uniform(seed, slot, purpose, block=0):
    """In [0, 1), from the 53 high bits of word1:word0."""
    w = words(seed, slot, purpose, block)
    return ((int(w[1]) << 32 | int(w[0])) >> 11) * 2.0**-53


def uniform_int(seed, slot, purpose, n):
    return int(uniform(seed, slot, purpose) * n)


def normal(seed, slot, purpose, shape):
    """Standard normals by Box-Muller in double, rounded once to fp32."""
    count = int(np.prod(shape))
    w = [word.astype(np.float64) for word in words(seed, slot, purpose, np.arange((count + 3) // 4))]
    out = np.empty((len(w[0]), 4))
    for pair in (0, 2):
        radius = np.sqrt(-2.0 * np.log((w[pair] + 0.5) * 2.0**-32))
        angle = 2.0 * np.pi * (w[pair + 1] * 2.0**-32)
        out[:, pair], out[:, pair + 1] = radius * np.cos(angle), radius * np.sin(angle)
    return out.astype(np.float32).reshape(-1)[:count].reshape(shape)


def kaiming_uniform(seed, position, shape):
    """peft's default start of `down`: uniform within 1 / sqrt(inputs), rounded once to fp32."""
    count = int(np.prod(shape))
    w = words(seed, position, LORA_INIT, np.arange((count + 3) // 4))
    u = (np.stack(w, axis=1).astype(np.float64) + 0.5) * 2.0**-32
    bound = 1 / np.sqrt(count / shape[0])
    return (bound * (2 * u - 1)).astype(np.float32).reshape(-1)[:count].reshape(shape)


def dropout_mask(seed, slot, module, p, shape, class_image=False, purpose=LORA_DROPOUT):
    """Which elements of one image's input to module `module` are kept, or which of its ranks."""
    count = int(np.prod(shape))
    purpose = purpose + (CLASS_IMAGE if class_image else 0) + (module << 16)
    w = np.stack(words(seed, slot, purpose, np.arange((count + 3) // 4)), axis=1)
    return (w >= np.uint64(int(p * 2**32))).reshape(-1)[:count].reshape(shape)


def permutation(seed, epoch, n, i, class_images=False, purpose=PERMUTATION):
    """Where row `i` of `n` goes in epoch `epoch`: a Feistel network of eight rounds, walked back into range."""
    half = ((n - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    purpose = purpose + (CLASS_IMAGE if class_images else 0)
    while True:
        left, right = i >> half, i & mask
        for round_number in range(8):
            mixed = int(words(seed, epoch, purpose, round_number << 28 | right)[0]) & mask
            left, right = right, left ^ mixed
        i = left << half | right
        if i < n:
            return i


def held_out_rows(seed, n, split):
    """Rows of a pack of `n` that validation_split holds out."""
    return sorted(permutation(seed, 0, n, i, purpose=HELD_OUT_ROWS) for i in range(int(n * split)))


def sample_id(seed, slot, n, class_images=False):
    """The row of the pack (of `n` rows) behind image `slot` of the run; or of the class pack behind its class image."""
    return permutation(seed, slot // n, n, slot % n, class_images)
