"""Captions, masks, weights and repeats of a pack: read by the page docs/shard_format.md alone, and what they do to a run."""

import json
import sys
from collections import Counter

import h5py
import numpy as np
import pytest
import torch
import xxhash
from lorashard_runs import REPO, adapter_hash, lorashard, make_base, write_recipe
from PIL import Image

sys.path.insert(0, REPO + "/tests/oracle")
from replay import Replay  # noqa: E402

ROWS = 6


def make_source(folder):
    """Pictures with an alpha channel or a mask of their own, several captions, weights and repeats."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    rows = []
    for i in range(ROWS):
        size = (70 + 9 * i, 64 + 5 * (i % 3))
        pixels = rng.integers(0, 256, (size[1], size[0], 4), np.uint8)
        pixels[..., 3] = 255 if i % 3 == 0 else np.linspace(0, 255, size[0]).astype(np.uint8)
        Image.fromarray(pixels, "RGBA").save(folder / f"{i}.png")
        row = {"file_name": f"{i}.png", "text": [f"picture {i}", f"{i}, in other, words"] if i % 2 else f"only {i}"}
        if i == 0:
            mask = np.zeros((size[1], size[0]), np.uint8)
            mask[10:40, 20:60] = 255
            Image.fromarray(mask).save(folder / "0-mask.png")
            row["mask"] = "0-mask.png"
        if i == 2:
            row |= {"weight": 0.25, "repeats": 3}
        if i == 3:
            row["weight"] = 2
        rows.append(row)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


PACK = ["--mask-column", "mask", "--weight-column", "weight", "--repeats-column", "repeats", "--alpha-masks"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extras")
    rows = make_source(folder / "pictures")
    report = json.loads(lorashard("pack", folder / "pictures", "--out", folder / "pack", "--json", *PACK).stdout)
    assert report["left_out"] == [] and report["num_masks"] == 5 and report["num_images_in_epoch"] == ROWS + 2
    make_base(folder / "base")
    return folder, rows


def test_another_implementation_reads_the_extras(work):
    folder, rows = work
    with h5py.File(folder / "pack/shard-00000.h5", "r", locking=False) as shard:
        assert shard.attrs["version"] == 2
        names = ["image_offsets", "image_checksums", "image_sizes", "caption_offsets", "captions", "file_name_offsets",
                 "file_names", "caption_counts", "repeats", "weights", "mask_offsets", "mask_checksums"]
        assert sorted(shard) == sorted(names + ["images", "masks"])
        checksum = xxhash.xxh3_64()
        for name in names:
            checksum.update(shard[name][:].tobytes())
        assert shard.attrs["index_checksum"] == checksum.intdigest()
        assert shard["repeats"][:].tolist() == [row.get("repeats", 1) for row in rows]
        assert shard["weights"][:].view("<f8").tolist() == [row.get("weight", 1) for row in rows]
        blob, cuts = shard["captions"][:].tobytes(), shard["caption_offsets"][:].tolist()
        captions = iter([blob[a:b].decode() for a, b in zip(cuts, cuts[1:])])
        expected = [row["text"] if isinstance(row["text"], list) else [row["text"]] for row in rows]
        assert [[next(captions) for _ in range(count)] for count in shard["caption_counts"][:]] == expected
        assert shard["masks"].chunks is None and shard["masks"][-1] == 0
        masks, cuts = shard["masks"][:].tobytes(), shard["mask_offsets"][:].tolist()
        assert cuts[-1] == len(masks) - 1
        pieces = [masks[a:b] for a, b in zip(cuts, cuts[1:])]
        assert [xxhash.xxh3_64(piece).intdigest() for piece in pieces] == shard["mask_checksums"][:].tolist()
        assert pieces[0] == (folder / "pictures/0-mask.png").read_bytes() and pieces[3] == b""
        for i in (1, 2, 4, 5):
            with Image.open(folder / f"pictures/{i}.png") as picture:
                (folder / "mask.png").write_bytes(pieces[i])
                assert Image.open(folder / "mask.png").convert("RGB").getchannel("R").tobytes() == picture.getchannel("A").tobytes()


def run(work, name, launch=(), **overrides):
    folder, _ = work
    values = {"train__train_batch_size": 2, "train__total_batch_size": 8, "train__max_train_steps": 2, "data__center_crop": False,
              "loss__masked_loss": True, "loss__unmasked_weight": 0.1, "captions__shuffle_caption": True,
              "train__snr_gamma": 5.0, "train__noise_offset": 0.1, "checkpoint__checkpointing_steps": 1} | overrides
    recipe = write_recipe(folder / f"{name}.toml", folder / "base", folder / "pack", folder / name, **values)
    lorashard(*(["launch", recipe, *launch] if launch else ["train", recipe]))
    return folder / name


@pytest.mark.parametrize("normalised", [False, True])
def test_masks_and_weights_equal_the_formulas(work, normalised):
    path = run(work, f"replay{normalised}", debug__trace_steps=2, loss__normalize_masked_area_loss=normalised)
    replay = Replay(path)
    errors = replay.replay()
    print(errors.table())
    assert not errors.outside(), errors.table()
    rows = Counter(row for step in range(2) for m in range(4 * step, 4 * step + 4)
                   for row in replay.trace[f"step{step}/micro{m}/sample_ids"].tolist())
    assert rows == Counter({row: 6 if row == 2 else 2 for row in range(ROWS)}), "two epochs of eight images"
    weights = torch.cat([replay.trace[f"step0/micro{m}/loss_weights"] for m in range(4)])
    assert sorted(weights.tolist()) == [0.25] * 3 + [1.0] * 4 + [2.0]


def test_a_mask_goes_where_its_picture_goes(work):
    """Crop and flip of a picture whose alpha channel rises from left to right can be told from the mask."""
    path = run(work, "masks", debug__trace_steps=2, data__random_flip=True)
    trace = Replay(path).trace
    directions = []
    for m in range(8):
        at = f"step{m // 4}/micro{m}/"
        for row, mask in zip(trace[at + "sample_ids"].tolist(), trace[at + "loss_mask"]):
            assert 0 <= mask.min() and mask.max() <= 1 and mask.shape == (1, 8, 8)
            if row == 3:
                assert (mask == 1).all(), "an opaque picture counts all over"
            elif row != 0:
                steps = mask[0, :, 1:] - mask[0, :, :-1]
                assert (steps > 0).all() or (steps < 0).all()
                directions.append(bool((steps > 0).all()))
    assert len(set(directions)) == 2, "some were flipped"


def test_any_rank_count_and_a_resume_write_the_same_bytes(work):
    one = run(work, "one")
    three = run(work, "three", launch=("--ranks", 3))
    assert adapter_hash(one) == adapter_hash(three)
    path = run(work, "resumed", launch=("--ranks", 2), train__max_train_steps=1)
    recipe = write_recipe(path.with_suffix(".more.toml"), work[0] / "base", work[0] / "pack", path, train__train_batch_size=2,
                          train__total_batch_size=8, train__max_train_steps=2, data__center_crop=False, loss__masked_loss=True,
                          loss__unmasked_weight=0.1, captions__shuffle_caption=True, train__snr_gamma=5.0,
                          train__noise_offset=0.1, checkpoint__checkpointing_steps=1)
    lorashard("train", recipe)
    assert adapter_hash(path) == adapter_hash(one)


def test_a_mask_of_another_size_is_refused(tmp_path):
    make_source(tmp_path / "pictures")
    Image.new("L", (5, 5)).save(tmp_path / "pictures/0-mask.png")
    said = lorashard("pack", tmp_path / "pictures", "--out", tmp_path / "pack", "--mask-column", "mask", code=65).stderr
    assert "0-mask.png" in said and "70 x 64" in said
