"""lorashard's safetensors against the reference package: what it accepts, and the bytes it writes."""
import json
import os
import random
import struct
import subprocess

import pytest
import safetensors
import safetensors.torch
import torch

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "safetensors_probe")
LONG = os.environ.get("LORASHARD_LONG_TESTS") == "1"


def file_bytes(header, data=b""):
    header = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(header)) + header + data


def reference_accepts(file):
    try:
        safetensors.deserialize(file)
        return True
    except safetensors.SafetensorError:
        return False


def lorashard_accepts(files, folder):
    corpus = folder / "corpus"
    corpus.write_bytes(b"".join(struct.pack("<Q", len(f)) + f for f in files))
    done = subprocess.run([PROBE, "check", corpus], capture_output=True, text=True, check=True)
    answers = done.stdout.strip()
    assert len(answers) == len(files)
    return [a == "1" for a in answers]


def real_file():
    tensors = {
        "unet.down.to_q.lora.down.weight": torch.arange(8, dtype=torch.float32).reshape(2, 4),
        "unet.down.to_q.lora.up.weight": torch.arange(8, dtype=torch.float16).reshape(4, 2),
        "ids": torch.arange(3),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(1.0),
    }
    return safetensors.torch.save(tensors, {"format": "pt"})


# Pieces of JSON and of the format that a byte flip would rarely make.
TOKENS = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u0000", b"\\ud800", b"\x00", b" ", b"\n", b"0", b"-0", b"1e1", b"1.0",
          b"18446744073709551615", b"18446744073709551616", b"9223372036854775808", b"4294967296", b"null", b"true", b"NaN",
          b'"__metadata__":', b'"dtype":', b'"shape":', b'"data_offsets":', b'"F32"', b'"F4"', b'"BOOL"', b"\xff", b"\xc3\xa9", b"\xef\xbb\xbf",
          b"// x\n", b"/* */"]


def mutate(rng, good):
    length = struct.unpack("<Q", good[:8])[0]
    header, data = bytearray(good[8:8 + length]), good[8 + length:]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(header)) if header else 0
        kind = rng.randrange(6)
        if kind == 0:
            header[at:at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            header[at:at + 1] = bytes([header[at] ^ (1 << rng.randrange(8))]) if header else b"x"
        elif kind == 2:
            header[at:at] = rng.choice(TOKENS)
        elif kind == 3:
            header[at:at + rng.randint(1, 20)] = b""
        elif kind == 4:
            other = rng.randrange(len(header)) if header else 0
            header[at:at] = header[other:other + rng.randint(1, 40)]
        else:
            header[at:at + rng.randint(1, 6)] = rng.choice(TOKENS)
    if rng.random() < 0.1:
        data = data[:rng.randrange(len(data) + 1)] + bytes(rng.randrange(3))
    length = len(header) if rng.random() < 0.97 else rng.choice([0, len(header) - 1, len(header) + 1, 2**63, 2**64 - 1, 2**64 - 8])
    return struct.pack("<Q", length % 2**64) + bytes(header) + data


def test_accepts_nothing_that_the_reference_rejects(tmp_path):
    count = 100_000 if LONG else 5_000
    rng = random.Random(7)
    good = real_file()
    files = [good] + [mutate(rng, good) for _ in range(count)]
    ours = lorashard_accepts(files, tmp_path)
    theirs = [reference_accepts(f) for f in files]
    print(f"{count} mutated headers: accepted {sum(ours)} here, {sum(theirs)} by the reference package")
    assert ours[0] and theirs[0]
    wrong = [f for f, a, b in zip(files, ours, theirs) if a and not b]
    assert not wrong, wrong[:3]
    assert sum(ours) > count // 100  # harmless mutations exist: a reader that refuses everything would prove nothing


STRICTER = {
    "duplicate key": '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    "leading space": " {}",
    "unknown field": '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}}',
    "shape beyond int64": '{"a":{"dtype":"U8","shape":[0,9223372036854775808],"data_offsets":[0,0]}}',
    "9 dimensions": '{"a":{"dtype":"U8","shape":[0,1,1,1,1,1,1,1,1],"data_offsets":[0,0]}}',
}


@pytest.mark.parametrize("name", STRICTER)
def test_is_stricter_than_the_reference_where_that_is_too_lenient(name, tmp_path):
    file = file_bytes(STRICTER[name])
    assert reference_accepts(file)
    assert lorashard_accepts([file], tmp_path) == [False]


REJECTED_BY_BOTH = {
    "hole": ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"\0\0"),
    "overlap": ('{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}', b"\0\0\0"),
    "trailing byte": ("{}", b"\0"),
    "missing byte": ('{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"\0"),
    "product overflow": ('{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}', b""),
    "lone surrogate": (r'{"\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b""),
    "bad UTF-8": (b'{"\xff":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b""),
    "NUL after the object": (b"{}\0\0", b""),
    "byte order mark": (b"\xef\xbb\xbf{}", b""),
    "nesting": ("{" + '"a":{' * 200 + "}" * 201, b""),
    "duplicate metadata": ('{"__metadata__":{},"__metadata__":{}}', b""),
    "metadata not a string": ('{"__metadata__":{"a":1}}', b""),
    "negative size": ('{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}}', b""),
    "comment": ("{/* */}", b""),
}


@pytest.mark.parametrize("name", REJECTED_BY_BOTH)
def test_rejects_what_the_reference_rejects(name, tmp_path):
    file = file_bytes(*REJECTED_BY_BOTH[name])
    assert not reference_accepts(file)
    assert lorashard_accepts([file], tmp_path) == [False]


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
          torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64, torch.float8_e8m0fnu,
          torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"note": 'a "quoted"\\\n\t\x01\x7f/\u00e9\u2028\U0001f600'}])
def test_writes_the_bytes_of_the_reference(metadata, tmp_path):
    rng = random.Random(3)
    tensors = {}
    for i, dtype in enumerate(DTYPES):
        for shape in [(), (3,), (2, 1, 3), (0, 5)]:
            size = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).element_size()
            data = torch.tensor([rng.randrange(2) for _ in range(size)], dtype=torch.uint8)
            tensors[f"{rng.choice(['z', 'a', 'M', 'é'])}.{i}.{len(shape)}"] = data.view(dtype).reshape(shape) if size else torch.zeros(shape).to(dtype)
    expected, found = tmp_path / "expected", tmp_path / "found"
    safetensors.torch.save_file(tensors, expected, metadata)
    subprocess.run([PROBE, "rewrite", expected, found], check=True)
    assert found.read_bytes() == expected.read_bytes()


def test_sorts_metadata_where_the_reference_has_no_order(tmp_path):
    metadata = {c: c for c in "hgfedcba"}
    expected, found = tmp_path / "expected", tmp_path / "found"
    safetensors.torch.save_file({"t": torch.ones(2)}, expected, metadata)
    subprocess.run([PROBE, "rewrite", expected, found], check=True)
    ours, theirs = found.read_bytes(), expected.read_bytes()
    assert len(ours) == len(theirs)
    headers = [json.loads(b[8:8 + struct.unpack("<Q", b[:8])[0]]) for b in (ours, theirs)]
    assert headers[0] == headers[1]
    assert list(headers[0]["__metadata__"]) == sorted(metadata)
