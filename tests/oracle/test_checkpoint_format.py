"""A checkpoint read from docs/checkpoint_format.md alone, byte by byte, without any of the program's code."""

import hashlib
import json
import os
import struct
import subprocess

import numpy as np
import pytest
import tomllib
from safetensors.numpy import load_file

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "checkpoint_probe")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    subprocess.run([PROBE, run], check=True)
    assert [path.name for path in run.iterdir()] == ["checkpoint-500"]
    return run / "checkpoint-500"


def test_the_manifest_has_size_and_hash_of_every_other_file_in_its_one_spelling(checkpoint):
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != "manifest.json"}
    assert sorted(files) == ["pytorch_lora_weights.safetensors", "recipe.toml", "state.safetensors"]
    expected = {"format": "lorashard-checkpoint", "version": 2, "global_step": 500,
                "files": {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                          for name, data in files.items()}}
    spelling = json.dumps(expected, indent=2, sort_keys=True) + "\n"
    assert (checkpoint / "manifest.json").read_text(encoding="utf-8") == spelling


def test_the_state_lies_where_the_page_says(checkpoint):
    data = (checkpoint / "state.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__")
    assert metadata == {"format": "lorashard-checkpoint", "version": "2", "global_step": "500", "updates": "498",
                        "skipped_in_a_row": "1", "pack_hash": "9f86d081", "base_hash": "60303ae2",
                        "arithmetic": "processor: A\nGPU: none\n", "program": "program: 1234\n",
                        "parameter_keys": "a.down 4x125\na.up 125x4"}
    x = np.arange(1000, dtype="<f4")
    expected = [("loss_scale/good_steps", "I64", np.int64(1234567890123)), ("optimizer/d", "F64", np.float64(0.1)),
                ("optimizer/exp_avg", "F32", x / 2), ("parameters", "F32", x),
                ("optimizer/state1", "U8", np.arange(1000).astype("u1"))]  # wider types first, then by name
    assert sorted(header) == sorted(name for name, *_ in expected)
    start = 0
    for name, dtype, values in expected:
        end = start + values.nbytes
        assert header[name] == {"dtype": dtype, "shape": list(values.shape), "data_offsets": [start, end]}
        assert np.array_equal(np.frombuffer(data[8 + length + start:8 + length + end], values.dtype), values.reshape(-1))
        start = end
    assert len(data) == 8 + length + start


def test_the_reference_package_and_a_toml_parser_read_the_rest(checkpoint):
    assert load_file(checkpoint / "pytorch_lora_weights.safetensors")["a.down"].shape == (4, 125)
    assert tomllib.loads((checkpoint / "recipe.toml").read_text(encoding="utf-8")) == {"seed": 1337}
