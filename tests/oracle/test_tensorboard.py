"""Event files of ours, read back by TensorBoard's own reader."""

import io
import os
import subprocess

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "tensorboard_probe")
TAGS = ["train/loss", "train/lr", "train/grad_norm", "train/images_per_second", "train/data_wait_ms"]


def write(folder, lines):
    output = subprocess.run([PROBE, folder], input="".join(line + "\n" for line in lines), capture_output=True, text=True, check=True)
    return output.stdout.strip()


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def test_every_scalar_comes_back_with_its_step(tmp_path):
    generator = np.random.default_rng(3)
    values = {tag: 10.0 ** generator.uniform(-12, 6, 500) for tag in TAGS}
    lines = [f"scalar {tag} {step + 1} {values[tag][step]!r}" for step in range(500) for tag in TAGS]
    path = write(tmp_path / "logs", [line.replace("np.float64(", "").replace(")", "") for line in lines])
    assert os.path.basename(path).startswith("events.out.tfevents.")
    events = read(tmp_path / "logs")
    assert sorted(events.Tags()["scalars"]) == sorted(TAGS)
    for tag in TAGS:
        scalars = events.Scalars(tag)
        assert [s.step for s in scalars] == list(range(1, 501))
        assert [s.value for s in scalars] == [float(np.float32(v)) for v in values[tag]]
        assert all(a.wall_time <= b.wall_time for a, b in zip(scalars, scalars[1:]))
    assert events.file_version == 2.0


def test_a_restart_drops_what_came_after_the_step_it_goes_on_from(tmp_path):
    write(tmp_path, [f"scalar train/loss {step} 1.0" for step in range(1, 21)])
    write(tmp_path, ["restart 11", *(f"scalar train/loss {step} 2.0" for step in range(11, 16))])
    scalars = read(tmp_path).Scalars("train/loss")
    assert [s.step for s in scalars] == list(range(1, 16))
    assert [s.value for s in scalars] == [1.0] * 10 + [2.0] * 5


def test_images_and_texts_come_back(tmp_path):
    picture = np.random.default_rng(5).integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    write(tmp_path / "logs", [f"image samples/0 7 24 40 {tmp_path / 'picture.png'}", "text prompt 7 Füße"])
    events = read(tmp_path / "logs")
    (image,) = events.Images("samples/0")
    assert (image.step, image.height, image.width) == (7, 24, 40)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), picture)
    (text,) = events.Tensors("prompt")
    assert text.step == 7 and tensor_util.make_ndarray(text.tensor_proto).tolist() == ["Füße".encode()]
    assert events.SummaryMetadata("prompt").plugin_data.plugin_name == "text"


def test_a_record_cut_short_hides_only_itself(tmp_path):
    path = write(tmp_path, [f"scalar train/loss {step} 1.0" for step in range(1, 6)])
    os.truncate(path, os.path.getsize(path) - 3)
    assert [s.step for s in read(tmp_path).Scalars("train/loss")] == [1, 2, 3, 4]
