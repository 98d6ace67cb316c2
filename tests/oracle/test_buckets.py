"""The bucket of a picture by kohya's rule written a second time, and its pixels against torchvision on Pillow, bit for bit."""

import os
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode, functional

import bucket_reference as reference

OPTIONS = {
    "512": (512, 256, 1024, 64),
    "1024": (1024, 512, 2048, 64),
    "steps_of_32": (768, 320, 1536, 32),
    "not_a_multiple": (1000, 256, 1024, 64),
    "small": (128, 64, 256, 64),
}


class Probe:
    def __init__(self):
        path = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "image_transform_probe")
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, words, answer_bytes, picture=b""):
        self.process.stdin.write(" ".join(map(str, words)).encode() + b"\n" + picture)
        self.process.stdin.flush()
        answer = self.process.stdout.read(answer_bytes)
        assert len(answer) == answer_bytes, f"the probe ended at '{words}'"
        return answer

    def sizes(self, *words):
        """((height, width) resized to, the same of the crop); None for a picture that is refused."""
        found = np.frombuffer(self.ask(words, 32), np.int64).tolist()
        return (tuple(found[:2]), tuple(found[2:])) if any(found) else None

    def frame(self, picture, resized, cropped, center_crop, flip_before_crop, interpolation, slot):
        words = ["frame", *picture.shape[:2], *resized, *cropped, int(center_crop), 1, int(flip_before_crop), interpolation, 7, slot]
        answer = self.ask(words, 24 + cropped[0] * cropped[1] * 12, picture.tobytes())
        pixels = torch.from_numpy(np.frombuffer(answer[24:], np.float32).copy()).view(3, *cropped)
        return np.frombuffer(answer[:24], np.int64).tolist(), pixels


@pytest.fixture(scope="module")
def probe():
    probe = Probe()
    yield probe
    probe.process.stdin.close()
    assert probe.process.wait() == 0


def data_of(options, no_upscale):
    keys = ("resolution", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps")
    return dict(zip(keys, options)) | {"bucket_no_upscale": no_upscale}


def sizes_to_try(data, rng, count):
    """Of all shapes; those that are a bucket, or beside one, among them."""
    sizes = [(h + dh, w + dw) for h, w in reference.resolutions(data) for dh in (-1, 0, 1) for dw in (-1, 0, 1)]
    sizes += [(2 * h, 2 * w) for h, w in reference.resolutions(data)] + [(1, 1), (1, 16000), (16000, 1), (4096, 64), (63, 900)]
    return sizes + [tuple(int(side) for side in np.exp(rng.uniform(np.log(16), np.log(9000), 2))) for _ in range(count)]


def test_the_sizes_at_512_are_kohyas():
    """Those of sd-scripts with its defaults, as width x height."""
    sizes = [(w, h) for h, w in reference.resolutions(data_of(OPTIONS["512"], False))]
    tall = [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576)]
    assert sizes == sorted(tall + [(512, 512)] + [(h, w) for w, h in tall])


@pytest.mark.parametrize("no_upscale", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_picture_has_the_bucket_of_the_rule(probe, name, no_upscale):
    data = data_of(OPTIONS[name], no_upscale)
    refused, buckets = 0, set()
    for size in sizes_to_try(data, np.random.default_rng(3), 1500):
        found = probe.sizes("bucket", *size, *OPTIONS[name], int(no_upscale))
        assert found == reference.frame(size, data), size
        if found is None:
            refused += 1
            continue
        (height, width), (bucket_height, bucket_width) = found
        assert height >= bucket_height > 0 and width >= bucket_width > 0
        assert bucket_height * bucket_width <= data["resolution"] ** 2
        if no_upscale:
            assert height <= size[0] and width <= size[1], (size, found)
        buckets.add((bucket_height, bucket_width))
    assert (refused > 0) == no_upscale
    if not no_upscale:
        assert buckets == set(reference.resolutions(data))


def test_a_class_image_covers_any_bucket(probe):
    rng = np.random.default_rng(5)
    for _ in range(500):
        size, bucket = ([int(side) for side in rng.integers(8, 900, 2)] for _ in range(2))
        found = probe.sizes("covering", *size, *bucket)
        assert found == (reference.covering(size, bucket), tuple(bucket))
        assert all(a >= b for a, b in zip(*found)) and any(a == b for a, b in zip(*found)), (size, bucket, found)


@pytest.mark.parametrize("flip_before_crop", [False, True])
@pytest.mark.parametrize("center_crop", [True, False])
def test_pixel_values_equal_torchvision(probe, center_crop, flip_before_crop):
    rng = np.random.default_rng(9)
    flips = 0
    for case in range(40):
        data = data_of((96, 32, 192, 32), case % 2 == 1)
        size = [int(side) for side in rng.integers(40, 300, 2)]
        picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        resized, bucket = reference.frame(size, data)
        interpolation = ["bilinear", "bicubic", "lanczos"][case % 3]
        (top, left, flipped), got = probe.frame(picture, resized, bucket, center_crop, flip_before_crop, interpolation, case)
        image = transforms.Resize(resized, interpolation=InterpolationMode[interpolation.upper()])(Image.fromarray(picture))
        if flipped and flip_before_crop:
            image = functional.hflip(image)
        # CenterCrop's own place, which is not asked of the program.
        image = transforms.CenterCrop(bucket)(image) if center_crop else functional.crop(image, top, left, *bucket)
        if flipped and not flip_before_crop:
            image = functional.hflip(image)
        expected = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])(image)
        assert torch.equal(got, expected), (size, resized, bucket)
        flips += flipped
    assert 0 < flips < 40
