"""Every random number of the program against a second implementation, written from docs/determinism.md in numpy.

Words, uniforms, integers and permutations: equal. Normals: equal or 1 unit in the last place of fp32, and that at most
once in a million (numpy's logarithm and libm's may differ in the last bit of a double)."""

import os
import random
import subprocess

import numpy as np
import philox_reference as reference
import pytest
import torch
from safetensors.torch import load_file, save_file

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "philox_probe")
NORMALS = 200_000_000 if os.environ.get("LORASHARD_LONG_TESTS") else 4_000_000
PERMUTED = [1, 2, 3, 4, 5, 785, 1000, 65537]
PURPOSES = [*range(1, 14), *range(20, 25), *range(0x8001, 0x8009)]


def signed(x):
    return x - 2**64 if x >= 2**63 else x


def counters():
    generator = random.Random(1)
    edges = [0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1]
    rows = [(seed, slot, 7, block, 1000) for seed in edges for slot in edges for block in (0, 2**32 - 1)]
    for _ in range(3000):
        rows.append((generator.getrandbits(64), generator.getrandbits(generator.choice([8, 33, 64])),
                     generator.choice(PURPOSES), generator.getrandbits(32), generator.randint(1, 10**generator.randint(0, 15))))
    return rows


def fills():
    # A slot's normals come from at most 2^32 blocks; 1, 2, 3 and 5 end within one.
    rows = [(seed, slot, purpose, count) for seed, slot, purpose in [(0, 0, 7), (1337, 2**40 + 5, 6), (2**64 - 1, 9, 0x8007)]
            for count in (1, 2, 3, 4, 5, 4096, 16384)]
    return rows + [(42, part, 7, 1_000_000) for part in range(NORMALS // 1_000_000)]


def permutations():
    cases = [(1337, 0), (2**64 - 1, 2**33 + 1), (7, 1)]
    return [(seed, epoch, n, class_images) for n in PERMUTED for seed, epoch in cases for class_images in (0, 1)]


def ask(folder, counters_, normals_, permutations_):
    asked = {"counters": counters_, "normals": normals_, "permutations": permutations_}
    save_file({name: torch.tensor([[signed(x) for x in row] for row in rows], dtype=torch.int64)
               for name, rows in asked.items()}, folder / "asked.safetensors")
    subprocess.run([PROBE, folder / "asked.safetensors", folder / "drawn.safetensors"], check=True)
    drawn = {name: tensor.numpy() for name, tensor in load_file(folder / "drawn.safetensors").items()}
    (folder / "drawn.safetensors").unlink()
    return drawn


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return ask(tmp_path_factory.mktemp("philox"), counters(), fills()[:21], permutations())


def test_the_reference_gives_the_published_vectors():
    ones = 0xFFFFFFFF
    for counter, key, expected in [
            ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
            ([ones] * 4, [ones] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
            ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
             "d16cfe09 94fdcceb 5001e420 24126ea1")]:
        assert " ".join(f"{int(w):08x}" for w in reference.philox4x32_10(counter, key)) == expected


def test_words_are_equal(drawn):
    for (seed, slot, purpose, block, _), words in zip(counters(), drawn["words"], strict=True):
        assert [int(w) for w in reference.words(seed, slot, purpose, block)] == words.tolist()


def test_uniforms_are_equal(drawn):
    for (seed, slot, purpose, _, n), uniform, integer in zip(counters(), drawn["uniform"], drawn["uniform_int"], strict=True):
        assert reference.uniform(seed, slot, purpose) == uniform
        assert reference.uniform_int(seed, slot, purpose, n) == integer
        assert 0 <= integer < n


def ordered(values):
    """fp32 values as integers of which neighbours differ by 1."""
    bits = values.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def test_normals_are_equal_or_one_unit_apart(drawn, tmp_path):
    compared = different = 0
    asked = fills()
    for start in [0, *range(21, len(asked), 20)]:
        rows = asked[:21] if start == 0 else asked[start:start + 20]
        values = drawn if start == 0 else ask(tmp_path, counters()[:1], rows, permutations()[:1])
        for i, (seed, slot, purpose, count) in enumerate(rows):
            expected = reference.normal(seed, slot, purpose, (count,))
            distance = np.abs(ordered(values[f"normals.{i}"]) - ordered(expected))
            assert distance.max() <= 1
            compared, different = compared + count, different + int((distance != 0).sum())
    print(f"{different} of {compared} normals differ, by 1 unit in the last place")
    assert different <= compared * 1e-6


def order_of(seed, epoch, n, class_images):
    """The permutation at all positions at once, from the page: a Feistel network, walked back into range."""
    half = ((n - 1).bit_length() + 1) // 2
    mask = np.uint64(2**half - 1)
    purpose = 1 + 0x8000 * class_images
    order = np.arange(n, dtype=np.uint64)
    outside = np.arange(n)
    while len(outside):
        left, right = order[outside] >> np.uint64(half), order[outside] & mask
        for round_number in range(8):
            w0 = reference.words(seed, epoch, purpose, np.uint64(round_number << 28) + right)[0]
            left, right = right, left ^ (w0 & mask)
        order[outside] = (left << np.uint64(half)) | right
        outside = outside[order[outside] >= n]
    return order.astype(np.int64)


def test_permutations_are_equal(drawn):
    for i, (seed, epoch, n, class_images) in enumerate(permutations()):
        order = drawn[f"permutations.{i}"]
        assert sorted(order.tolist()) == list(range(n))
        assert np.array_equal(order, order_of(seed, epoch, n, class_images)), (seed, epoch, n, class_images)
        for row in list(range(n))[:: max(n // 5, 1)]:
            assert reference.permutation(seed, epoch, n, row, class_images) == order[row]
