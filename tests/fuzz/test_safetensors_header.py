"""Every mutated header that the sanitized reader accepts is one that the reference package accepts."""
import os
import struct
import subprocess
import sys

sys.path.insert(0, os.path.join(os.environ["LORASHARD_SOURCE_DIR"], "tests", "oracle"))
from test_safetensors import reference_accepts  # noqa: E402

FUZZ_TESTS = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "fuzz_tests")


def files_of(corpus):
    files, at = [], 0
    while at < len(corpus):
        length, = struct.unpack_from("<Q", corpus, at)
        files.append(corpus[at + 8:at + 8 + length])
        at += 8 + length
    return files


def test_nothing_is_accepted_that_the_reference_rejects(tmp_path):
    accepted = tmp_path / "accepted"
    done = subprocess.run([FUZZ_TESTS, "--gtest_filter=FuzzSafetensorsHeader.*"], capture_output=True, text=True,
                          env=os.environ | {"LORASHARD_FUZZ_ACCEPTED": str(accepted)})
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    files = files_of(accepted.read_bytes())
    assert len(files) > 1000
    wrong = [file for file in files if not reference_accepts(file)]
    print(f"safetensors: of {len(files)} accepted the reference package accepts {len(files) - len(wrong)}")
    assert not wrong, wrong[:3]
    assert not reference_accepts(files[0][:-1]), "the reference rejects something"
