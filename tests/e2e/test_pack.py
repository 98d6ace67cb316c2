"""lorashard pack as its users meet it, and the format of docs/shard_format.md read and written by another implementation."""

import glob
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import time

import h5py
import numpy as np
import pytest
import xxhash
from lorashard_runs import LORASHARD, lorashard, make_pictures
from PIL import Image

STAMPS = "/usr/share/tuxpaint/stamps"


def read_pack(folder):
    """[(file name, caption, (height, width), bytes)], by the page alone; asserts everything it promises."""
    index = json.load(open(os.path.join(folder, "index.json"), encoding="utf-8"))
    assert (index["format"], index["version"]) == ("lorashard-pack", 1)
    samples = []
    for number, entry in enumerate(index["shards"]):
        assert entry["file"] == f"shard-{number:05}.h5"
        path = os.path.join(folder, entry["file"])
        data = open(path, "rb").read()
        assert entry["file_bytes"] == len(data) and entry["sha256"] == hashlib.sha256(data).hexdigest()
        with h5py.File(path, "r", locking=False) as shard:
            version = shard.attrs["version"]
            assert shard.attrs["format"] == b"lorashard-shard" and version in (1, 2)
            names = ["image_offsets", "image_checksums", "image_sizes", "caption_offsets", "captions", "file_name_offsets",
                     "file_names"]
            extras = ["caption_counts", "repeats", "weights", "mask_offsets", "mask_checksums"] if version == 2 else []
            assert sorted(shard) == sorted(names + ["images"] + extras + ["masks"] * bool(extras))
            names += extras
            checksum = xxhash.xxh3_64()
            for name in names:
                assert shard[name].fletcher32 and shard[name].chunks and shard[name].compression is None
                checksum.update(shard[name][:].tobytes())
            assert shard.attrs["index_checksum"] == checksum.intdigest()
            assert shard["images"].chunks is None
            images, offsets = shard["images"][:].tobytes(), shard["image_offsets"][:]

            def texts(name):
                blob, cuts = shard[f"{name}s"][:].tobytes(), shard[f"{name}_offsets"][:]
                assert cuts[0] == 0 and blob[int(cuts[-1]):] == b"\0"
                return [blob[a:b].decode() for a, b in zip(cuts, cuts[1:])]

            pictures = [images[a:b] for a, b in zip(offsets, offsets[1:])]
            assert [xxhash.xxh3_64(picture).intdigest() for picture in pictures] == shard["image_checksums"][:].tolist()
            assert len(pictures) == entry["num_samples"] and len(images) == entry["image_bytes"]
            sizes = map(tuple, shard["image_sizes"][:].reshape(-1, 2).tolist())
            samples += zip(texts("file_name"), texts("caption"), sizes, pictures)
    assert len(samples) == index["num_samples"]
    assert sum(bool(caption) for _, caption, _, _ in samples) == index["num_captions"]
    return samples


def write_shard(path, samples, change=None):
    """A shard by the page alone. change(file, write): leaves out or puts in what it likes."""
    def blob(items):
        return np.frombuffer(b"".join(items), np.uint8), np.cumsum([0] + [len(item) for item in items]).astype("<u8")

    images, image_offsets = blob([picture for _, _, _, picture in samples])
    captions, caption_offsets = blob([caption.encode() for _, caption, _, _ in samples] + [b"\0"])
    file_names, file_name_offsets = blob([name.encode() for name, _, _, _ in samples] + [b"\0"])
    arrays = {
        "image_offsets": image_offsets,
        "image_checksums": np.array([xxhash.xxh3_64(picture).intdigest() for _, _, _, picture in samples], "<u8"),
        "image_sizes": np.array([size for _, _, size, _ in samples], "<u8").reshape(-1),
        "caption_offsets": caption_offsets[:-1], "captions": captions,
        "file_name_offsets": file_name_offsets[:-1], "file_names": file_names, "images": images,
    }
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        checksum = xxhash.xxh3_64()
        for name, array in arrays.items():
            if name != "images":
                checksum.update(array.tobytes())
        file.attrs.create("format", np.bytes_("lorashard-shard"))
        file.attrs.create("version", np.uint64(1))
        file.attrs.create("index_checksum", np.uint64(checksum.intdigest()))

        def write(name, **options):
            if name == "images":
                file.create_dataset(name, data=arrays[name], **options)
            else:
                file.create_dataset(name, data=arrays[name], **({"chunks": arrays[name].shape, "fletcher32": True} | options))

        for name in arrays:
            if not (change and change(file, name, write, arrays)):
                write(name)


def write_index(folder, samples):
    path = os.path.join(folder, "shard-00000.h5")
    image_bytes = sum(len(picture) for _, _, _, picture in samples)
    index = {"format": "lorashard-pack", "version": 1, "num_samples": len(samples), "image_bytes": image_bytes,
             "num_captions": sum(bool(caption) for _, caption, _, _ in samples),
             "source": {"kind": "image_folder", "captions": "none"},
             "shards": [{"file": "shard-00000.h5", "num_samples": len(samples), "image_bytes": image_bytes,
                         "file_bytes": os.path.getsize(path), "sha256": hashlib.sha256(open(path, "rb").read()).hexdigest()}]}
    with open(os.path.join(folder, "index.json"), "w", encoding="utf-8") as file:
        json.dump(index, file)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(str(tmp_path_factory.mktemp("source") / "pictures"), count=12)


def make_samples(pictures):
    samples = []
    for line in open(os.path.join(pictures, "metadata.jsonl"), encoding="utf-8"):
        row = json.loads(line)
        data = open(os.path.join(pictures, row["file_name"]), "rb").read()
        width, height = Image.open(io.BytesIO(data)).size
        samples.append((row["file_name"], row["text"], (height, width), data))
    return samples


def test_another_implementation_reads_what_pack_writes(tmp_path, pictures):
    done = lorashard("pack", pictures, "--out", tmp_path / "pack", "--shard-bytes", "10KB", "--json")
    report = json.loads(done.stdout)
    assert read_pack(tmp_path / "pack") == make_samples(pictures)
    assert report["num_samples"] == 12 and report["num_shards"] > 1 and report["left_out"] == []
    assert report["hash"] == hashlib.sha256((tmp_path / "pack/index.json").read_bytes()).hexdigest()
    assert "packed 12 pictures" in done.stderr


def test_what_another_implementation_writes_is_read(tmp_path, pictures):
    samples = make_samples(pictures)
    write_shard(tmp_path / "shard-00000.h5", samples)
    write_index(tmp_path, samples)
    done = json.loads(lorashard("inspect", tmp_path, "--verify", "--json").stdout)
    assert done["num_samples"] == 12
    assert [sample["caption"] for sample in done["first_samples"]] == [caption for _, caption, _, _ in samples[:5]]


def evil_shards(folder):
    """{name: change} for write_shard: files HDF5 would follow somewhere it must not, or spend without end on."""
    outside = os.path.join(folder, "outside.h5")
    with h5py.File(outside, "w") as file:
        file.create_dataset("images", data=np.arange(100_000, dtype=np.uint8))
    raw = os.path.join(folder, "outside.raw")
    with open(raw, "wb") as file:
        file.write(bytes(1_000_000))

    def only(target, action):
        def change(file, name, write, arrays):
            if name != target:
                return False
            action(file, name, write, arrays)
            return True
        return change

    def virtual(file, name, write, arrays):
        layout = h5py.VirtualLayout(shape=arrays[name].shape, dtype=np.uint8)
        layout[:] = h5py.VirtualSource(outside, "images", shape=(100_000,))[:len(arrays[name])]
        file.create_virtual_dataset(name, layout)

    def external_link(file, name, write, arrays):
        file[name] = h5py.ExternalLink(outside, "/images")

    def soft_link(file, name, write, arrays):
        write(name)
        file.move(name, "renamed")
        file[name] = h5py.SoftLink("/renamed")

    def replaced(**options):
        return lambda file, name, write, arrays: file.create_dataset(name, **options)

    def compact(file, name, write, arrays):
        space = h5py.h5s.create_simple(arrays[name].shape)
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.STD_U64LE, space, properties).write(
            h5py.h5s.ALL, h5py.h5s.ALL, arrays[name])

    def extra(file, name, write, arrays):
        write(name)
        file.create_dataset("more", data=[1])

    def text(file, name, write, arrays):
        write(name)
        file.attrs["format"] = "lorashard-shard"  # of variable length

    def missing_attribute(file, name, write, arrays):
        write(name)
        del file.attrs["index_checksum"]

    huge = {"shape": (2**58,), "dtype": "<u8", "chunks": (8192,), "fletcher32": True}
    return {
        "virtual pictures": only("images", virtual),
        "external storage": only("images", lambda file, name, write, arrays: write(name, external=[(raw, 0, 1_000_000)])),
        "external link": only("images", external_link),
        "soft link": only("images", soft_link),
        "chunked pictures": only("images", lambda file, name, write, arrays: write(name, chunks=(100,))),
        "a missing dataset": only("captions", lambda *_: None),
        "a group": only("captions", lambda file, name, write, arrays: file.create_group(name)),
        "one dataset more": only("captions", extra),
        "gzip": only("captions", lambda file, name, write, arrays: write(name, compression="gzip")),
        "lzf": only("captions", lambda file, name, write, arrays: write(name, compression="lzf")),
        "no checksum": only("captions", lambda file, name, write, arrays: write(name, fletcher32=False)),
        "compact": only("image_sizes", compact),
        "endless offsets": only("image_offsets", replaced(**huge)),
        "endless captions": only("captions", replaced(**(huge | {"dtype": np.uint8}))),
        "offsets of 32 bits": only("image_offsets", lambda file, name, write, arrays: write(name, dtype="<u4")),
        "offsets of big end": only("image_offsets", lambda file, name, write, arrays: write(name, dtype=">u8")),
        "two dimensions": only("image_sizes", lambda file, name, write, arrays: file.create_dataset(
            name, data=arrays[name].reshape(-1, 2), chunks=(2, 2), fletcher32=True)),
        "text of variable length": only("images", text),
        "no index checksum": only("images", missing_attribute),
        "other sizes": only("image_sizes", lambda file, name, write, arrays: file.create_dataset(
            name, data=arrays[name] + np.uint64(1), chunks=(2,), fletcher32=True)),
    }


def test_shards_made_to_harm_are_refused(tmp_path, pictures):
    samples = make_samples(pictures)
    for name, change in evil_shards(str(tmp_path)).items():
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        write_shard(folder / "shard-00000.h5", samples, change)
        write_index(folder, samples)
        done = lorashard("inspect", folder, "--verify", code=65)
        assert "shard-00000.h5" in done.stderr and "hint:" in done.stderr, (name, done.stderr)
        print(f"{name}: {done.stderr.splitlines()[0].split('shard-00000.h5')[1][:100]}")


def test_offsets_that_point_outside_are_refused(tmp_path, pictures):
    """With all checksums right, so that only the checks of the numbers themselves are left."""
    samples = make_samples(pictures)
    changes = {
        "beyond the end": lambda offsets: np.append(offsets[:-1], np.uint64(2**40)),
        "falling": lambda offsets: offsets[[0, 2, 1, *range(3, len(offsets))]],
        "not from zero": lambda offsets: np.append(np.uint64(1), offsets[1:]),
        "wrapping": lambda offsets: np.append(np.uint64(0), np.append(np.uint64(2**64 - 8), offsets[2:])),
        "one too few": lambda offsets: offsets[1:] - offsets[1],
    }
    for target in ("image_offsets", "caption_offsets", "file_name_offsets"):
        for name, change in changes.items():
            folder = tmp_path / f"{target}_{name}".replace(" ", "_")
            folder.mkdir()

            def put(file, dataset, write, arrays):
                if dataset == "image_offsets":  # the first to be written: the checksum must fit what follows
                    arrays[target] = change(arrays[target]).astype("<u8")
                    checksum = xxhash.xxh3_64()
                    for array_name, array in arrays.items():
                        if array_name != "images":
                            checksum.update(array.tobytes())
                    file.attrs.modify("index_checksum", np.uint64(checksum.intdigest()))
                return False

            write_shard(folder / "shard-00000.h5", samples, put)
            write_index(folder, samples)
            done = lorashard("inspect", folder, "--verify", code=65)
            assert f"/{target}" in done.stderr, (target, name, done.stderr)


def test_captions_are_those_of_datasets_imagefolder(tmp_path, pictures):
    """The loader of the reference scripts sees the same pictures with the same captions, in the same order."""
    import datasets
    reference = datasets.load_dataset("imagefolder", data_dir=pictures, split="train", cache_dir=str(tmp_path / "cache"))
    reference = reference.cast_column("image", datasets.Image(decode=False))
    lorashard("pack", pictures, "--out", tmp_path / "pack")
    packed = [(name, caption) for name, caption, _, _ in read_pack(tmp_path / "pack")]
    assert packed == [(os.path.basename(row["image"]["path"]), row["text"]) for row in reference]


def test_killed_at_any_moment_leaves_a_pack_or_none(tmp_path, pictures):
    out = tmp_path / "pack"
    lorashard("pack", pictures, "--out", tmp_path / "whole", "--shard-bytes", "10KB")
    whole = (tmp_path / "whole/index.json").read_bytes()
    kills = 40 if os.environ.get("LORASHARD_LONG_TESTS") == "1" else 8
    interrupted = 0
    for i in range(kills):
        process = subprocess.Popen([LORASHARD, "pack", pictures, "--out", str(out), "--shard-bytes", "10KB", "--overwrite"],
                                   stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(glob.glob(f"{out}/shard-*")) <= i % 6 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (out / "index.json").exists():
            assert (out / "index.json").read_bytes() == whole
            lorashard("inspect", out, "--verify")
        else:
            interrupted += 1
            lorashard("inspect", out, code=2)
    lorashard("pack", pictures, "--out", out, "--shard-bytes", "10KB", "--overwrite")
    assert (out / "index.json").read_bytes() == whole
    assert not glob.glob(f"{out}/*.tmp*")
    print(f"{kills} kills, {interrupted} of them before the pack was whole")


def test_errors_have_their_codes(tmp_path, pictures):
    lorashard("pack", code=2)
    lorashard("pack", tmp_path / "none", "--out", tmp_path / "a", code=2)
    lorashard("pack", pictures, "--out", tmp_path / "a", "--on-bad-image", "ignore", code=2)
    assert "--caption-column" in lorashard("pack", pictures, "--out", tmp_path / "a", "--caption-column", "prompt",
                                           code=65).stderr
    assert not (tmp_path / "a").exists()
    copy = shutil.copytree(pictures, tmp_path / "copy")
    data = open(os.path.join(copy, "004.png"), "rb").read()
    with open(os.path.join(copy, "004.png"), "wb") as file:
        file.write(data[:len(data) // 2])
    done = lorashard("pack", copy, "--out", tmp_path / "a", code=65)
    assert "004.png" in done.stderr and "--on-bad-image skip" in done.stderr
    done = lorashard("pack", copy, "--out", tmp_path / "a", "--on-bad-image", "skip", "--json")
    assert [item["file_name"] for item in json.loads(done.stdout)["left_out"]] == ["004.png"]
    assert "--overwrite" in lorashard("pack", copy, "--out", tmp_path / "a", code=2).stderr


@pytest.mark.skipif(not os.path.isdir(STAMPS), reason="needs Debian's tuxpaint-stamps-default")
def test_real_captioned_pictures(tmp_path):
    done = lorashard("pack", STAMPS, "--out", tmp_path / "pack", "--json")
    report = json.loads(done.stdout)
    expected, without = [], []
    for path in glob.glob(f"{STAMPS}/**/*.png", recursive=True):
        name, text = os.path.relpath(path, STAMPS), os.path.splitext(path)[0] + ".txt"
        if os.path.exists(text):
            width, height = Image.open(path).size
            expected.append((name, open(text, encoding="utf-8").readline().strip(), (height, width), open(path, "rb").read()))
        else:
            without.append(name)
    assert len(expected) == 785 and len(without) == 11
    assert read_pack(tmp_path / "pack") == sorted(expected)
    assert [item["file_name"] for item in report["left_out"]] == sorted(without)
    for name in without:
        assert name in done.stderr
