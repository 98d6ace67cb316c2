"""What the system refuses: threads, locks, reads of a network file system that fail, go stale or stand still."""

import os
import resource
import signal
import stat
import subprocess
import time

import pytest

from fault_runs import HERE, make_inputs
from lorashard_runs import LORASHARD, adapter_hash, lorashard, write_recipe


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("limits"))


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("shim") / "fault_shim.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, os.path.join(HERE, "fault_shim.c"), "-ldl"], check=True)
    return str(library)


def recipe(work, name, **overrides):
    values = {"train__total_batch_size": 3, "train__max_train_steps": 6, "checkpoint__checkpointing_steps": 2}
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name, **{**values, **overrides})


@pytest.fixture(scope="module")
def undisturbed(work):
    lorashard("train", recipe(work, "undisturbed"))
    return adapter_hash(work / "undisturbed")


def faulty(shim, call, error, path, at=1, times=0, **more):
    fault = {**more, "LD_PRELOAD": shim, "FAULT_CALL": call, "FAULT_ERRNO": error, "FAULT_PATH": path, "FAULT_AT": at, "FAULT_TIMES": times}
    return {**os.environ, **{name: str(value) for name, value in fault.items()}}


def test_a_file_system_without_locks_is_good_enough(work, undisturbed, shim):
    """ENOLCK from every flock, as on NFS without a lock daemon: HDF5 asks for none, and the lease does without."""
    lorashard("launch", recipe(work, "no-locks"), "--ranks", 2, env=faulty(shim, "flock", "ENOLCK", ""))
    assert adapter_hash(work / "no-locks") == undisturbed


@pytest.mark.parametrize("error", ["ESTALE", "EIO"])
def test_a_pack_that_cannot_be_opened_for_a_moment_is_tried_again(work, undisturbed, shim, error):
    name = f"opening-{error}"
    said = lorashard("train", recipe(work, name), env=faulty(shim, "pread", error, "shard-0", at=2, times=2)).stderr
    assert said.count("trying again") == 1 and "shard-0" in said, said
    assert adapter_hash(work / name) == undisturbed


@pytest.mark.parametrize("error", ["ESTALE", "EIO"])
def test_a_read_of_a_picture_that_fails_for_a_moment_is_tried_again(work, undisturbed, shim, error):
    name = f"moment-{error}"
    said = lorashard("train", recipe(work, name), env=faulty(shim, "pread", error, "shard-0", at=4, times=3, FAULT_WORKERS=1)).stderr
    assert said.count("trying again") == 1 and "shard-0" in said, said
    assert adapter_hash(work / name) == undisturbed


@pytest.mark.parametrize("error, text", [("ESTALE", "Stale file handle"), ("EIO", "Input/output error")])
def test_a_read_of_the_pack_that_keeps_failing_ends_the_run_with_74_and_its_name(work, shim, error, text):
    name = f"lasting-{error}"
    since = time.monotonic()
    said = lorashard("launch", recipe(work, name), "--ranks", 2, code=74, env=faulty(shim, "pread", error, "shard-0", at=4, FAULT_WORKERS=1)).stderr
    print(f"\n{error} of every read of a shard: exit code 74 after {time.monotonic() - since:.1f} s, with the start")
    assert text in said and "shard-0" in said and "sample" in said and "trying again" in said, said


def test_reads_that_stand_still_for_seconds_change_nothing(work, undisturbed, shim):
    environment = faulty(shim, "pread", "stall", "shard-0", at=5, times=2, FAULT_WORKERS=1)
    said = lorashard("launch", recipe(work, "stalls", distributed__collective_timeout_s=3), "--ranks", 2, env=environment).stderr
    assert "is lost" not in said and adapter_hash(work / "stalls") == undisturbed


def nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, whose processes are counted")
def test_too_few_threads_are_told_and_tear_nothing(work, undisturbed):
    for parent in [work, *work.parents]:
        if parent.owner() == "root" and parent != parent.parent:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    codes = {}
    for most in range(1, 8):
        run = work / f"threads-{most}"
        run.mkdir()
        os.chown(run, 65534, 65534)
        path = recipe(work, f"threads-{most}")

        def limited(most=most):
            nobody()
            resource.setrlimit(resource.RLIMIT_NPROC, (most, most))

        done = subprocess.run([LORASHARD, "train", str(path)], stderr=subprocess.PIPE, text=True, preexec_fn=limited, timeout=300)
        codes[most] = done.returncode
        assert done.returncode in (0, 70, 74), f"at most {most} threads: exit code {done.returncode}\n{done.stderr}"
        assert done.returncode == 0 or ("error:" in done.stderr and "terminate called" not in done.stderr), done.stderr
        assert "passing over" not in lorashard("train", path).stderr
        assert adapter_hash(run) == undisturbed
    print(f"\nat most N threads of a user: exit code {codes}")
    assert set(codes.values()) != {0}, "no limit was too low"
