"""Resize, crop, flip and normalise against torchvision on Pillow: bit for bit."""
import os
import random
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

LONG = os.environ.get("LORASHARD_LONG_TESTS") == "1"
INTERPOLATIONS = ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


class Probe:
    def __init__(self):
        path = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "image_transform_probe")
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, line, picture, answer_bytes):
        self.process.stdin.write(line.encode() + b"\n" + picture.tobytes())
        self.process.stdin.flush()
        answer = self.process.stdout.read(answer_bytes)
        assert len(answer) == answer_bytes, f"the probe ended at '{line}'"
        return answer

    def resize(self, picture, size, region, interpolation, kernels):
        height, width = region[2:]
        words = ["resize", *picture.shape[:2], *size, *region, interpolation, kernels]
        answer = self.ask(" ".join(map(str, words)), picture, height * width * 3)
        return np.frombuffer(answer, np.uint8).reshape(height, width, 3)

    def transform(self, picture, resolution, center_crop, random_flip, interpolation, seed, slot, flip_before_crop=False):
        words = ["transform", *picture.shape[:2], resolution, int(center_crop), int(random_flip), int(flip_before_crop),
                 interpolation, seed, slot]
        answer = self.ask(" ".join(map(str, words)), picture, 24 + resolution * resolution * 12)
        where = np.frombuffer(answer[:24], np.int64)
        return where, torch.from_numpy(np.frombuffer(answer[24:], np.float32).copy()).view(3, resolution, resolution)


@pytest.fixture(scope="module")
def probe():
    probe = Probe()
    yield probe
    probe.process.stdin.close()
    assert probe.process.wait() == 0


def random_picture(rng, height, width):
    kind = rng.integers(3)
    if kind == 0:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == 1:  # saturated: over- and undershoot of bicubic and lanczos must clip as Pillow clips
        return rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255
    ramp = np.linspace(0, 255, height)[:, None, None] * np.linspace(0, 1, width)[None, :, None] * np.array([1, 0.5, 0.25])
    return ramp.astype(np.uint8)


def random_side(rng, longest):
    return int(np.exp(rng.uniform(0, np.log(longest))))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_resize_equals_pillow(probe, interpolation):
    rng = np.random.default_rng(INTERPOLATIONS.index(interpolation))
    count = 2000 if LONG else 120
    for case in range(count):
        height, width, new_height, new_width = (random_side(rng, 400) for _ in range(4))
        if case % 6 == 0:
            new_height = height  # one pass alone
        if case % 6 == 1:
            new_width = width
        if case % 20 == 2:
            height, width = 1 + case % 3000, 1 + case % 3  # extreme aspect
        picture = random_picture(rng, height, width)
        expected = np.asarray(Image.fromarray(picture).resize((new_width, new_height), Image.Resampling[interpolation.upper()]))
        for kernels in ["portable", "fastest"]:
            got = probe.resize(picture, (new_height, new_width), (0, 0, new_height, new_width), interpolation, kernels)
            assert np.array_equal(got, expected), (kernels, picture.shape, (new_height, new_width))
        top, left = int(rng.integers(new_height)), int(rng.integers(new_width))
        bottom, right = int(rng.integers(top, new_height)) + 1, int(rng.integers(left, new_width)) + 1
        region = (top, left, bottom - top, right - left)
        got = probe.resize(picture, (new_height, new_width), region, interpolation, "fastest")
        assert np.array_equal(got, expected[top:bottom, left:right]), (picture.shape, (new_height, new_width), region)
    print(f"{interpolation}: {count} pictures")


def reference(picture, resolution, interpolation, crop, flipped):
    """The transform of diffusers' train_text_to_image_lora.py with its random choices given."""
    image = transforms.Resize(resolution, interpolation=getattr(transforms.InterpolationMode, interpolation.upper()))(
        Image.fromarray(picture)
    )
    if crop is None:
        image = transforms.CenterCrop(resolution)(image)
    else:
        image = functional.crop(image, *crop, resolution, resolution)
    if flipped:
        image = functional.hflip(image)
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])(image), image


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("center_crop", [True, False])
def test_pixel_values_equal_torchvision(probe, interpolation, center_crop):
    rng = np.random.default_rng(100 + INTERPOLATIONS.index(interpolation))
    count = 300 if LONG else 30
    flips = 0
    for case in range(count):
        resolution = int(rng.choice([8, 64, 65, 128, 200]))
        height, width = random_side(rng, 700) + 2, random_side(rng, 700) + 2
        height, width = min(height, 40 * width), min(width, 40 * height)
        picture = random_picture(rng, height, width)
        (top, left, flipped), got = probe.transform(picture, resolution, center_crop, True, interpolation, 7, case)
        flips += flipped
        crop = None if center_crop else (int(top), int(left))
        expected, _ = reference(picture, resolution, interpolation, crop, flipped)
        assert torch.equal(got, expected), (picture.shape, resolution)
    assert 0 < flips < count
    print(f"{interpolation}, center_crop {center_crop}: {count} pictures, {flips} flipped")


def sdxl_reference(picture, resolution, interpolation, center_crop, crop, flipped):
    """preprocess_train() of diffusers' train_text_to_image_lora_sdxl.py with its random choices given."""
    image = transforms.Resize(resolution, interpolation=getattr(transforms.InterpolationMode, interpolation.upper()))(
        Image.fromarray(picture)
    )
    if flipped:
        image = functional.hflip(image)
    if center_crop:
        crop = tuple(max(0, int(round((side - resolution) / 2.0))) for side in (image.height, image.width))
        image = transforms.CenterCrop(resolution)(image)
    else:
        image = functional.crop(image, *crop, resolution, resolution)
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])(image), crop


@pytest.mark.parametrize("center_crop", [True, False])
def test_sdxl_flips_before_it_crops(probe, center_crop):
    rng = np.random.default_rng(7)
    flips = differ = 0
    for case in range(60):
        resolution = int(rng.choice([8, 64, 65]))
        height, width = random_side(rng, 300) + 2, random_side(rng, 300) + 2
        height, width = min(height, 40 * width), min(width, 40 * height)
        picture = random_picture(rng, height, width)
        where, got = probe.transform(picture, resolution, center_crop, True, "lanczos", 7, case, flip_before_crop=True)
        crop, flipped = (int(where[0]), int(where[1])), bool(where[2])
        expected, expected_crop = sdxl_reference(picture, resolution, "lanczos", center_crop, crop, flipped)
        assert torch.equal(got, expected), (picture.shape, resolution)
        assert crop == expected_crop
        flips += flipped
        differ += not torch.equal(got, probe.transform(picture, resolution, center_crop, True, "lanczos", 7, case)[1])
    assert 0 < differ <= flips < 60


def test_every_crop_position_is_drawn_and_within_torchvisions_range(probe):
    picture = np.zeros((12, 8, 3), np.uint8)
    tops = set()
    for slot in range(200):
        (top, left, flipped), _ = probe.transform(picture, 8, False, False, "lanczos", 3, slot)
        assert left == 0 and flipped == 0
        tops.add(int(top))
    assert tops == set(range(12 - 8 + 1))


def test_full_size_pictures(probe):
    random.seed(1)
    for height, width, resolution in [(768, 1024, 512), (1024, 683, 512), (333, 500, 512), (512, 512, 512), (511, 513, 512)]:
        picture = random_picture(np.random.default_rng(height), height, width)
        _, got = probe.transform(picture, resolution, True, False, "lanczos", 0, 0)
        expected, _ = reference(picture, resolution, "lanczos", None, False)
        assert torch.equal(got, expected), (height, width)
