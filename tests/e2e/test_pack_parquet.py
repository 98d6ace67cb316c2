"""lorashard pack of parquet files as Hugging Face's datasets write them, against datasets, pyarrow and a folder of the same pictures."""

import io
import json
import os
import shutil
import subprocess

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lorashard_runs import LORASHARD, adapter_hash, lorashard, make_base, write_dreambooth_recipe, write_recipe
from PIL import Image
from test_pack import read_pack

datasets.disable_progress_bars()
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(seed, size=(70, 66), kind="png"):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


PICTURES = [encoded(i, (64 + 3 * i, 70), ["png", "jpeg", "webp"][i % 3]) for i in range(10)]


def image(i, path=None):
    return {"bytes": PICTURES[i], "path": path}


def write(path, images, texts=None, image_type=IMAGE, text_type=pa.string(), rows_a_group=4, more={}, **how):
    columns = {"image": pa.array(images, image_type)}
    if texts is not None:
        columns["text"] = pa.array(texts, text_type)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pq.write_table(pa.table(columns | more), path, row_group_size=rows_a_group, **how)
    return path


def pack(source, out, *options, code=0):
    return lorashard("pack", source, "--out", out, "--json", *options, code=code)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A data set as the hub has it: data/SPLIT-NUMBER-of-COUNT.parquet, written by datasets; a card and a thumbnail beside it."""
    folder = tmp_path_factory.mktemp("hub")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    names = {"train": range(7), "test": range(7, 10)}
    (folder / "data").mkdir()
    for split, rows in names.items():
        rows = list(rows)
        columns = {"image": [image(i, f"{i}.{split}") for i in rows], "text": [f"picture {i}" for i in rows]}
        data = datasets.Dataset.from_dict(columns, features)
        shards = 2 if split == "train" else 1
        for k in range(shards):
            data.shard(shards, k, contiguous=True).to_parquet(folder / f"data/{split}-{k:05}-of-{shards:05}.parquet", batch_size=3)
    (folder / "README.md").write_text("card")
    (folder / "thumbnail.png").write_bytes(PICTURES[0])
    return folder


def test_the_hubs_layout_equals_what_datasets_reads(hub, tmp_path):
    done = pack(hub, tmp_path / "pack", "--threads", 3)
    report = json.loads(done.stdout)
    reference = datasets.load_dataset("parquet", data_files=str(hub / "data/train-*"), split="train", cache_dir=str(tmp_path / "cache"))
    rows = [row["image"] for row in reference.cast_column("image", datasets.Image(decode=False))]
    samples = read_pack(tmp_path / "pack")
    assert [sample[3] for sample in samples] == [row["bytes"] for row in rows] == PICTURES[:7]
    assert [sample[0] for sample in samples] == [row["path"] for row in rows]
    assert [sample[1] for sample in samples] == reference["text"][:]
    assert [sample[2] for sample in samples] == [picture.size[::-1] for picture in reference["image"]]
    assert [item["file_name"] for item in report["left_out"]] == ["data/test-00000-of-00001.parquet"]
    assert report["captions"] == "parquet" and report["num_captions"] == 7 and "train-00001-of-00002.parquet" in done.stderr
    assert json.loads((tmp_path / "pack/index.json").read_text())["source"] == {"kind": "parquet", "captions": "parquet"}


@pytest.mark.parametrize("threads", [1, 4])
def test_the_pack_is_that_of_the_same_pictures_as_files(tmp_path, threads):
    """All that a table can say: several captions, masks, weights and repeats; several files and row groups; small shards."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    table, columns = [], {name: [] for name in ("image", "text", "mask", "weight", "repeats")}
    for i, data in enumerate(PICTURES):
        (folder / f"{i}.png").write_bytes(data)
        row = {"file_name": f"{i}.png", "text": [f"picture {i}", "", f"the {i}th"] if i != 6 else [], "weight": i / 4, "repeats": 1 + i % 2}
        mask = None
        if i % 4 == 1:
            out = io.BytesIO()
            Image.fromarray(np.full((70, 64 + 3 * i), 255 * (i == 1), np.uint8)).save(out, "png")
            mask, row["mask"] = {"bytes": out.getvalue(), "path": f"{i}-mask.png"}, f"{i}-mask.png"
            (folder / f"{i}-mask.png").write_bytes(out.getvalue())
        table.append(json.dumps(row) + "\n")
        for name, value in (row | {"image": image(i, f"{i}.png"), "mask": mask}).items():
            if name in columns:
                columns[name].append(value)
    (folder / "metadata.jsonl").write_text("".join(table))
    for name, rows in (("train-00000-of-00002", slice(0, 7)), ("train-00001-of-00002", slice(7, 10))):
        more = {"mask": pa.array(columns["mask"][rows], IMAGE), "weight": pa.array(columns["weight"][rows], pa.float32()),
                "repeats": pa.array(columns["repeats"][rows], pa.int16())}
        write(f"{tmp_path}/hub/data/{name}.parquet", columns["image"][rows], columns["text"][rows], more=more,
              text_type=pa.list_(pa.string()))
    options = ["--mask-column", "mask", "--weight-column", "weight", "--repeats-column", "repeats", "--shard-bytes", "20KB"]
    made = {}
    for source, name in ((folder, "of-files"), (tmp_path / "hub", "of-parquet")):
        report = json.loads(pack(source, tmp_path / name, *options, "--threads", threads).stdout)
        made[name] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        index = json.loads(made[name].pop("index.json"))
        made[name]["index"] = {key: value for key, value in index.items() if key != "source"}
        assert report["num_samples"] == 9 and report["num_masks"] == 3 and report["num_shards"] > 2 and len(report["left_out"]) == 1
    assert made["of-files"] == made["of-parquet"]


def test_a_training_takes_it_and_gives_the_same_adapter(hub, tmp_path):
    base = make_base(tmp_path / "base")
    (tmp_path / "files").mkdir()
    with open(tmp_path / "files/metadata.jsonl", "w", encoding="utf-8") as table:
        for i in range(7):
            (tmp_path / f"files/{i}.png").write_bytes(PICTURES[i])
            table.write(json.dumps({"file_name": f"{i}.png", "text": f"picture {i}"}) + "\n")
    hashes = set()
    for name, source in (("of-files", tmp_path / "files"), ("of-parquet", hub)):
        recipe = write_recipe(tmp_path / f"{name}.toml", base, source, tmp_path / name, train__max_train_steps=2, train__total_batch_size=2)
        checks = {line["check"]: line for line in json.loads(lorashard("doctor", recipe, "--json").stdout)["checks"]}
        assert ": 7 pictures, " in checks["data"]["message"] and checks["parquet"]["message"].startswith("Arrow ")
        lorashard("train", recipe)
        hashes.add(adapter_hash(tmp_path / name))
    assert len(hashes) == 1
    one_file = write(f"{tmp_path}/instances.parquet", [image(0), image(1)])  # no captions, as DreamBooth wants it
    lorashard("train", write_dreambooth_recipe(tmp_path / "dreambooth.toml", base, one_file, tmp_path / "dreambooth",
                                               train__max_train_steps=1, train__total_batch_size=2))
    assert [name for name, *_ in read_pack(tmp_path / "dreambooth/pack")] == ["instances.parquet:0", "instances.parquet:1"]


TEXTS = ["one", "two", "two", "", "three", "two"]


@pytest.mark.parametrize("text_type", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
@pytest.mark.parametrize("image_type", [IMAGE, pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())]), pa.binary(),
                                        pa.large_binary(), pa.binary_view()], ids=str)
def test_types(tmp_path, text_type, image_type):
    images = [image(i) if pa.types.is_struct(image_type) else PICTURES[i] for i in range(6)]
    path = write(f"{tmp_path}/a.parquet", images, TEXTS, image_type, text_type)
    pack(path, tmp_path / "pack", "--allow-missing-captions")
    samples = read_pack(tmp_path / "pack")
    assert [(sample[1], sample[3]) for sample in samples] == list(zip(TEXTS, PICTURES))
    assert [sample[0] for sample in samples] == [f"a.parquet:{i}" for i in range(6)]


@pytest.mark.parametrize("text_type", [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2),
                                       pa.list_(pa.dictionary(pa.int8(), pa.string()))], ids=str)
def test_lists_of_captions(tmp_path, text_type):
    path = write(f"{tmp_path}/a.parquet", [image(i) for i in range(6)], [[f"a {i}", f"b {i}"] for i in range(6)], text_type=text_type)
    pack(path, tmp_path / "pack")
    first = json.loads(lorashard("inspect", tmp_path / "pack", "--json").stdout)["first_samples"]
    assert [sample["caption"] for sample in first] == [f"a {i}" for i in range(5)]
    import h5py
    with h5py.File(tmp_path / "pack/shard-00000.h5", "r", locking=False) as shard:
        assert shard["captions"][:].tobytes() == "".join(f"a {i}b {i}" for i in range(6)).encode() + b"\0"


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"compression": "gzip"},
                                     {"compression": "brotli", "data_page_version": "2.0"},
                                     {"use_dictionary": False, "data_page_size": 100}, {"write_page_checksum": True, "compression": "lz4"},
                                     {"column_encoding": {"text": "DELTA_BYTE_ARRAY"}, "use_dictionary": False}], ids=str)
def test_ways_of_writing(tmp_path, options):
    table = pa.table({"text": [f"picture {i}" for i in range(10)], "image": pa.array([image(i, f"{i}") for i in range(10)], IMAGE)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3, **options)
    pack(tmp_path / "a.parquet", tmp_path / "pack")
    assert [(sample[0], sample[1], sample[3]) for sample in read_pack(tmp_path / "pack")] == [
        (f"{i}", f"picture {i}", PICTURES[i]) for i in range(10)]


def test_which_files_are_taken(tmp_path):
    def packed(folder, *options):
        pack(folder, tmp_path / "pack", "--overwrite", *options)
        return [caption for _, caption, _, _ in read_pack(tmp_path / "pack")]

    for name in ("b", "a", ".hidden", "data/train-0"):
        write(f"{tmp_path}/own/{name}.parquet", [image(0)], [name])
    assert packed(tmp_path / "own") == ["a", "b"], "its own before those of data/, by name"
    write(f"{tmp_path}/own/train.parquet", [image(0)], ["train"])
    assert packed(tmp_path / "own") == ["train"], "train alone, where there is one"
    # The cache of huggingface_hub: links to files named by their hash.
    os.makedirs(tmp_path / "snapshot/data")
    shutil.move(tmp_path / "own/a.parquet", tmp_path / "blob")
    os.symlink("../../blob", tmp_path / "snapshot/data/train-00000-of-00001.parquet")
    assert packed(tmp_path / "snapshot") == packed(tmp_path / "snapshot/data/train-00000-of-00001.parquet") == ["a"]
    # Pictures with captions are what the folder is for, unless asked otherwise.
    (tmp_path / "snapshot/x.png").write_bytes(PICTURES[1])
    assert packed(tmp_path / "snapshot") == ["a"]
    assert packed(tmp_path / "snapshot", "--captions", "none") == [""]
    (tmp_path / "snapshot/x.txt").write_text("of a file")
    assert packed(tmp_path / "snapshot") == ["of a file"]
    assert packed(tmp_path / "snapshot", "--captions", "parquet") == ["a"]
    said = pack(tmp_path / "snapshot/data/train-00000-of-00001.parquet", tmp_path / "no", "--captions", "metadata_csv", code=2).stderr
    assert "found metadata_csv" in said and "--caption-column" in said
    (tmp_path / "empty").mkdir()
    assert "expected *.parquet" in pack(tmp_path / "empty", tmp_path / "no", "--captions", "parquet", code=2).stderr


def test_faults_are_named(tmp_path):
    def refused(images, texts=None, *options, code=65, **more):
        path = write(f"{tmp_path}/a.parquet", images, texts, **more)
        said = pack(path, tmp_path / "pack", *options, code=code).stderr
        assert not (tmp_path / "pack").exists()
        return said

    good, texts = [image(i) for i in range(6)], [f"picture {i}" for i in range(6)]
    place = "a.parquet', row group 1, row 5: the column '{}': "
    assert place.format("text") + "expected a caption, found null" in refused(good, [*texts[:5], None])
    assert place.format("text") + "found a zero byte" in refused(good, [*texts[:5], "a\0b"])
    assert "expected texts, found null" in refused(good, [["a"]] * 5 + [["a", None]], text_type=pa.list_(pa.string()))
    assert "a.parquet, row group 1, row 5': expected a picture, found null" in refused([*good[:5], None], texts)
    assert "expected a picture, found null" in refused([*good[:5], {"bytes": None, "path": "/etc/passwd"}], texts)
    assert "a.parquet, row group 1, row 5'" in refused([*good[:5], {"bytes": b"no picture", "path": "x.png"}], texts)
    said = refused(good, texts, "--caption-column", "caption", code=2)
    assert "expected a column 'caption', found 'image', 'text'" in said and "--caption-column" in said
    assert "expected a column 'picture', found 'image', 'text'" in refused(good, texts, "--image-column", "picture", code=2)
    assert "'mask'" in refused(good, texts, "--mask-column", "mask", code=2)
    assert "expected captions as string or list of strings, found int64" in refused(good, list(range(6)), text_type=pa.int64())
    said = refused(["a.png"] * 6, texts, image_type=pa.string())
    assert "expected pictures as struct<bytes: binary, path: string> or binary, found string" in said
    assert place.format("w") + "expected a number from 0, found -1" in refused(
        good, texts, "--weight-column", "w", more={"w": pa.array([1, 2, 3, 4, None, -1.0])})
    assert place.format("r") + "expected a whole number from 1, found 1.5" in refused(
        good, texts, "--repeats-column", "r", more={"r": pa.array([1, 2, 3, 4, None, 1.5])})
    assert "expected numbers, found string" in refused(good, texts, "--weight-column", "w", more={"w": pa.array(texts)})
    mask = {"bytes": encoded(0, (5, 5)), "path": None}
    said = refused(good, texts, "--mask-column", "mask", more={"mask": pa.array([mask] * 6, IMAGE)})
    assert "the mask of 'a.parquet, row group 0, row 0': expected 64 x 70 pixels" in said
    assert "found none" in refused([], [], code=2)
    (tmp_path / "b.parquet").write_text("not one")
    assert "b.parquet" in pack(tmp_path / "b.parquet", tmp_path / "pack", code=65).stderr
    assert "nothing there" in pack(tmp_path / "none.parquet", tmp_path / "pack", code=2).stderr


@pytest.mark.parametrize("threads", [1, 4])
def test_bad_pictures_are_skipped_and_named(tmp_path, threads):
    images = [image(i) for i in range(10)]
    images[2], images[7] = {"bytes": PICTURES[2][:100], "path": None}, None
    path = write(f"{tmp_path}/a.parquet", images, [f"picture {i}" for i in range(10)])
    report = json.loads(pack(path, tmp_path / "pack", "--on-bad-image", "skip", "--threads", threads).stdout)
    assert [item["file_name"] for item in report["left_out"]] == ["a.parquet, row group 0, row 2", "a.parquet, row group 1, row 7"]
    assert report["num_skipped"] == 2
    assert [sample[0] for sample in read_pack(tmp_path / "pack")] == [f"a.parquet:{i}" for i in range(10) if i not in (2, 7)]
    pack(path, tmp_path / "three", "--on-bad-image", "skip", "--max-samples", 3)
    assert [sample[0] for sample in read_pack(tmp_path / "three")] == [f"a.parquet:{i}" for i in (0, 1, 3)]


def test_a_damaged_file_ends_the_packing_even_where_pictures_are_skipped(tmp_path):
    path = write(f"{tmp_path}/a.parquet", [image(i) for i in range(10)], [f"picture {i}" for i in range(10)], compression="none")
    with open(path, "r+b") as file:
        data = file.read()
        file.seek(data.index(PICTURES[8]) - 16)  # the first of the last row group: before it the header of its page, and its length
        file.write(bytes(12))
    said = [pack(path, tmp_path / "pack", "--on-bad-image", "skip", "--threads", threads, code=65).stderr for threads in (1, 4)]
    assert "a.parquet', row group 2: " in said[0] and said[0].splitlines()[-2:] == said[1].splitlines()[-2:]


PEAK = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stderr=subprocess.DEVNULL); " \
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


def stored(blob, i):
    out = io.BytesIO()
    Image.fromarray(np.roll(blob, i)).save(out, "png", compress_level=0)
    return out.getvalue()


def test_memory_stays_flat(tmp_path):
    """120 MB of pictures in row groups of 10 MB take about the memory that 20 MB do: it varies by 50 MB."""
    blob = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    peaks = []
    for count in (20, 120):
        rows = [{"bytes": stored(blob, i), "path": f"{i}.png"} for i in range(count)]
        path = write(f"{tmp_path}/{count}.parquet", rows, [f"picture {i}" for i in range(count)], rows_a_group=10)
        done = subprocess.run(["/usr/bin/env", "python3", "-c", PEAK, LORASHARD, "pack", path, "--out", str(tmp_path / f"pack-{count}"),
                               "--shard-bytes", "4MB", "--threads", "1"], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    print(peaks)
    assert peaks[1] < peaks[0] + 70_000, f"peak memory in KiB: {peaks}"
