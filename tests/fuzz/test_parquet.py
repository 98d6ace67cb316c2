"""Parquet files to hurt, written by pyarrow, and the reader run on them."""
import os
import random
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq

FUZZ_TESTS = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "fuzz_tests")


def table(text_type=pa.string(), texts=None):
    rows = 9
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({
        "image": pa.array([{"bytes": random.Random(i).randbytes(40), "path": f"{i}.png"} for i in range(rows)], image),
        "text": pa.array(texts or [f"bird {i % 3}" for i in range(rows)], text_type),
        "mask": pa.array([None if i % 2 else {"bytes": bytes(30), "path": None} for i in range(rows)], image),
        "weight": pa.array([i / 2 for i in range(rows)]), "repeats": pa.array([1 + i for i in range(rows)]),
    })


def test_damaged_parquet_files(tmp_path):
    files = {"plain": ({}, {}), "zstd": ({}, {"compression": "zstd"}), "checksums": ({}, {"write_page_checksum": True}),
             "dictionary": ({"text_type": pa.dictionary(pa.int8(), pa.string())}, {}), "pages": ({}, {"data_page_version": "2.0"}),
             "lists": ({"text_type": pa.list_(pa.string()), "texts": [["a", "b"][: i % 3] for i in range(9)]}, {}),
             "delta": ({}, {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY", "weight": "BYTE_STREAM_SPLIT"}}),
             "views": ({"text_type": pa.string_view()}, {"compression": "none"})}
    for name, (what, how) in files.items():
        pq.write_table(table(**what), tmp_path / f"{name}.parquet", row_group_size=5, **how)
    done = subprocess.run([FUZZ_TESTS, "--gtest_filter=FuzzParquet.*"], capture_output=True, text=True,
                          env=os.environ | {"LORASHARD_FUZZ_PARQUET": str(tmp_path)})
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "SKIPPED" not in done.stdout
