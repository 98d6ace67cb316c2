"""Checkpoints through kills, full disks, failing calls, damage, signals and a second run. LORASHARD_LONG_TESTS=1: the long counts."""

import contextlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))

from lorashard_runs import LORASHARD, adapter_hash, lorashard, make_base, make_pack, make_pictures, metrics, wait_until_gone, write_recipe  # noqa: E402

LONG = os.environ.get("LORASHARD_LONG_TESTS") == "1"
PROBE = os.path.join(os.environ.get("LORASHARD_BUILD_DIR", "build/dev"), "tests", "checkpoint_fault_probe")
STEPS = 8


@pytest.fixture
def say(capfd):
    """Past pytest's capture: the counts belong into the log."""

    def write(text):
        with capfd.disabled():
            print(f"\n{text}", flush=True)

    return write


@pytest.fixture(scope="module")
def work():
    # Not below pytest's folder, which other sessions of pytest close for "nobody" again.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="lorashard-faults-"))
    folder.chmod(0o755)
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    make_base(folder / "base")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def recipe(work, name, output_dir=None, **overrides):
    values = {"train__max_train_steps": STEPS, "train__total_batch_size": 4, "checkpoint__checkpointing_steps": 1, **overrides}
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", output_dir or work / name, **values)


@pytest.fixture(scope="module")
def undisturbed(work):
    lorashard("train", recipe(work, "undisturbed"))
    return adapter_hash(work / "undisturbed")


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("shim") / "fault_shim.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, os.path.join(HERE, "fault_shim.c"), "-ldl"], check=True)
    return str(library)


def checkpoints(folder):
    """Steps of the checkpoints there; fails where a temporary folder or file is left."""
    names = os.listdir(folder)
    assert not [name for name in names if ".tmp-" in name], names
    return sorted(int(name.removeprefix("checkpoint-")) for name in names if name.startswith("checkpoint-"))


def descendants(pid):
    """`pid` and all below it, parents first."""
    children = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
            children.setdefault(int(file.read().rpartition(")")[2].split()[1]), []).append(int(entry))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def ranks_below(pid):
    """Process ids of the ranks that `lorashard launch` or mpirun `pid` started."""
    found = []
    for candidate in descendants(pid):
        with contextlib.suppress(OSError), open(f"/proc/{candidate}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
            if len(words) > 1 and words[0].endswith(b"lorashard") and words[1] == b"train":
                found.append(candidate)
    return found


def wait_until(process, condition, what):
    deadline, over = time.monotonic() + 120, False
    while not condition():
        assert not over, f"no {what}: {process.poll()}"
        over = process.poll() is not None or time.monotonic() >= deadline  # what it did last is looked at once more
        time.sleep(0.002)


def num_lines(folder):
    try:
        return (folder / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def command_for(path, ranks):
    return [LORASHARD, "launch", str(path), "--ranks", str(ranks)] if ranks > 1 else [LORASHARD, "train", str(path)]


def test_kill_9_of_all_ranks_at_random_instants(work, undisturbed, tmp_path, say):
    trials, rng = (200 if LONG else 12), random.Random(2)
    environment = {**os.environ, "OMPI_MCA_orte_tmpdir_base": str(tmp_path)}  # what killed mpiruns leave
    span, found, finished, fallbacks = 0.8 * metrics(work / "undisturbed")[-1]["wall_s"], 0, 0, 0
    for trial in range(trials):
        before, after = 1 + trial % 4, 1 + (trial // 4 + trial) % 4
        run = work / "killed"
        shutil.rmtree(run, ignore_errors=True)
        path = recipe(work, "killed")
        process = subprocess.Popen(command_for(path, before), stderr=subprocess.DEVNULL, env=environment)
        wait_until(process, lambda: (run / "metrics.jsonl").exists(), "start")
        started, instant = time.monotonic(), rng.uniform(0, span)
        while time.monotonic() - started < instant and process.poll() is None:
            time.sleep(0.001)
        finished += num_lines(run) == STEPS
        pids = descendants(process.pid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        wait_until_gone(pids)
        left = [name for name in os.listdir(run) if name.startswith("checkpoint-") and ".tmp-" not in name]
        found += bool(left)
        resumed = lorashard(*command_for(path, after)[1:], env=environment)
        fallbacks += "passing over" in resumed.stderr
        assert bool(left) == ("going on from" in resumed.stderr), resumed.stderr
        assert adapter_hash(run) == undisturbed, f"trial {trial}: {before} ranks killed after {instant:.3f} s, resumed on {after}"
        assert checkpoints(run)[-1] == STEPS, f"trial {trial}"
        assert [line["global_step"] for line in metrics(run)] == list(range(1, STEPS + 1))
        if trial % 20 == 19:
            say(f"kill -9 of all ranks: {trial + 1} of {trials} trials")
    say(f"kill -9 of all ranks: {trials} of {trials} resumed to the same bytes on 1 to 4 ranks; {found} found a checkpoint, "
        f"{finished} had done all steps, {fallbacks} had to pass one over")
    assert fallbacks == 0 and found > 0


def test_every_failing_call_leaves_whole_checkpoints(shim, tmp_path, say):
    done = subprocess.run([PROBE, "calls", tmp_path / "run"], env={**os.environ, "LD_PRELOAD": shim}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    points = sum(int(line.split(": ")[1].split()[0]) for line in done.stdout.splitlines())
    say(f"failing calls: {points} points (EIO, ENOSPC, EINTR, short writes), 0 torn")
    assert points >= 500, done.stdout


@pytest.mark.parametrize("call, error", [("write", "EIO"), ("fsync", "ENOSPC"), ("rename", "EIO"), ("mkdir", "EROFS"), ("read", "EIO")])
def test_an_error_of_the_writer_ends_all_ranks_together(work, undisturbed, shim, call, error):
    name = f"io-{call}"
    path = recipe(work, name)
    fault = {"LD_PRELOAD": shim, "FAULT_CALL": call, "FAULT_ERRNO": error, "FAULT_PATH": "/checkpoint-3/" if call == "read" else "/checkpoint-3"}
    done = lorashard("launch", path, "--ranks", 3, code=74, env={**os.environ, **fault})
    said = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(said) == 1 and "checkpoint-3" in said[0], done.stderr
    # Of a checkpoint that can't be read back nobody knows what the disk holds: it stays, and so do those before it.
    assert checkpoints(work / name) == ([1, 2, 3] if call == "read" else [1, 2])
    lorashard("launch", path, "--ranks", 2)
    assert adapter_hash(work / name) == undisturbed


@contextlib.contextmanager
def small_disk(folder, bytes_):
    os.makedirs(folder)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={bytes_}", "none", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"needs the right to mount a small disk: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def size_of(folder):
    return sum((folder / name).stat().st_size for name in os.listdir(folder))


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_full_disk(work, undisturbed, policy):
    room = 2 * size_of(work / "undisturbed" / "checkpoint-1") + 600_000  # two checkpoints, the adapter, the rest
    disk = work / f"disk-{policy}"
    with small_disk(disk, room):
        path = recipe(work, f"full-{policy}", output_dir=disk / "run", checkpoint__on_disk_full=policy)
        done = lorashard("launch", path, "--ranks", 2, code=74 if policy == "stop" else 0)
        assert "No space left on device" in done.stderr and "checkpoint-3" in done.stderr
        assert checkpoints(disk / "run") == [1, 2]
        if policy == "stop":
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            assert "going on from" in lorashard("launch", path, "--ranks", 3).stderr
        assert adapter_hash(disk / "run") == undisturbed
        assert [line["global_step"] for line in metrics(disk / "run")] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_largest_file_size(work, undisturbed, policy):
    """ulimit -f: no checkpoint fits, the adapter does."""
    largest = 3 * os.path.getsize(work / "undisturbed" / "pytorch_lora_weights.safetensors") // 2
    path = recipe(work, f"ulimit-{policy}", checkpoint__on_disk_full=policy)
    # One process: mpirun itself needs larger files than this.
    done = lorashard("train", path, code=74 if policy == "stop" else 0,
                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)))
    assert "File too large" in done.stderr and "checkpoint-1" in done.stderr
    assert checkpoints(work / f"ulimit-{policy}") == []
    if policy == "continue":
        assert adapter_hash(work / f"ulimit-{policy}") == undisturbed


def test_stopped_on_a_full_disk_is_no_stop_with_a_checkpoint(work, shim):
    """75 promises a checkpoint, also with on_disk_full = "continue"."""
    path = recipe(work, "full-stop", train__max_train_steps=10000, checkpoint__checkpointing_steps=10000, checkpoint__on_disk_full="continue")
    fault = {"LD_PRELOAD": shim, "FAULT_CALL": "write", "FAULT_ERRNO": "ENOSPC", "FAULT_PATH": "/checkpoint-"}
    process = subprocess.Popen([LORASHARD, "train", str(path)], stderr=subprocess.PIPE, text=True, env={**os.environ, **fault})
    wait_until(process, lambda: num_lines(work / "full-stop") > 1, "second step")
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 74 and "No space left on device" in said, said


def nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def test_an_output_folder_that_cannot_be_written_is_refused_before_step_0(work, shim, say):
    run = work / "read-only"
    run.mkdir()
    path = recipe(work, "read-only")
    began = time.monotonic()
    fault = {"LD_PRELOAD": shim, "FAULT_CALL": "create", "FAULT_ERRNO": "EROFS", "FAULT_PATH": str(run)}
    said = lorashard("train", path, code=74, env={**os.environ, **fault}).stderr
    took = time.monotonic() - began
    assert "Read-only file system" in said and str(run) in said and "adapter:" not in said, said
    assert os.listdir(run) == []
    if os.getuid() == 0:
        # As somebody without the right to write, who can read the rest.
        said = lorashard("train", path, code=74, preexec_fn=nobody).stderr
        assert "Permission denied" in said and str(run) in said and "adapter:" not in said, said
    say(f"read-only output folder: refused before the base was loaded, {took:.2f} s after the start")


def test_a_read_only_mount_is_refused_before_step_0(work):
    disk = work / "disk-read-only"
    with small_disk(disk, 1_000_000):
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for output_dir in (disk, disk / "below" / "below"):
            said = lorashard("train", recipe(work, "ro-mount", output_dir=output_dir), code=74).stderr
            assert "Read-only file system" in said and "adapter:" not in said, said


def test_a_second_run_in_one_folder_is_refused_and_a_killed_one_is_not_in_the_way(work, say):
    run = work / "two-runs"
    path = recipe(work, "two-runs", train__max_train_steps=100000, checkpoint__checkpointing_steps=100000)
    first = subprocess.Popen([LORASHARD, "train", str(path)], stderr=subprocess.DEVNULL)
    wait_until(first, lambda: num_lines(run) > 0, "first step")
    took = []
    for ranks in (1, 2):
        began = time.monotonic()
        said = lorashard(*command_for(path, ranks)[1:], code=2).stderr
        took.append(time.monotonic() - began)
        assert f"process {first.pid}" in said and str(run) in said and said.count("another run") == 1, said
    say(f"second run in one folder: refused in {took[0]:.2f} s (one process), {took[1]:.2f} s (two ranks)")
    lines = num_lines(run)
    wait_until(first, lambda: num_lines(run) > lines, "step after the second run was refused")
    first.kill()
    first.wait()
    assert (run / "run.lease").exists()
    # The third: told of the takeover, and it works.
    third = subprocess.Popen([LORASHARD, "train", str(path)], stderr=subprocess.PIPE, text=True)
    wait_until(third, lambda: json.loads((run / "run.lease").read_text())["pid"] == third.pid and num_lines(run) > 0, "takeover")
    third.send_signal(signal.SIGTERM)
    said = third.communicate()[1]
    assert third.returncode == 75 and f"process {first.pid}" in said and "which is gone" in said, said
    assert not (run / "run.lease").exists()


def test_damage_of_the_newest_checkpoint_is_found_and_the_one_before_is_used(work, undisturbed, tmp_path, say):
    run = tmp_path / "run"
    shutil.copytree(work / "undisturbed", run)
    trials = 1000 if LONG else 60
    done = subprocess.run([PROBE, "damage", run, str(trials), "5"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stderr.count("passing over") == trials, "each is said"
    say(f"damaged newest checkpoint: {done.stdout.strip()}")


@pytest.mark.parametrize("damage", ["removed", "truncated", "flipped"])
def test_a_run_falls_back_to_the_checkpoint_before_and_says_so(work, undisturbed, damage):
    name = f"damaged-{damage}"
    run, path = work / name, recipe(work, name)
    shutil.copytree(work / "undisturbed", run)
    os.remove(run / "pytorch_lora_weights.safetensors")
    state = run / f"checkpoint-{STEPS}" / "state.safetensors"
    if damage == "removed":
        state.unlink()
    elif damage == "truncated":
        os.truncate(state, state.stat().st_size // 2)
    else:
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 16
        state.write_bytes(content)
    # The clock jumped: newest is by step, not by time.
    for step in range(1, STEPS + 1):
        os.utime(run / f"checkpoint-{step}", (2_000_000_000 - step * 86400,) * 2)
    said = lorashard("launch", path, "--ranks", 2).stderr
    assert "passing over" in said and "state.safetensors" in said, said
    assert f"going on from '{run}/checkpoint-{STEPS - 1}'" in said, said
    assert adapter_hash(run) == undisturbed
    assert "passing over" not in lorashard("train", path).stderr, "the broken one was replaced"


def test_a_storm_of_signals_during_saves_ends_with_a_checkpoint(work, say):
    trials, rng, slowest, sent = (20 if LONG else 3), random.Random(4), 0.0, 0
    for trial in range(trials):
        name = f"storm-{trial}"
        path = recipe(work, name, train__max_train_steps=100000)
        process = subprocess.Popen([LORASHARD, "launch", str(path), "--ranks", "3"], stderr=subprocess.PIPE, text=True)
        wait_until(process, lambda: num_lines(work / name) > 1, "second step")
        time.sleep(rng.uniform(0, 0.3))
        ranks, began = ranks_below(process.pid), time.monotonic()
        assert len(ranks) == 3
        # A signal a process can't take any more is one to a process that has ended.
        while process.poll() is None and time.monotonic() - began < 60:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(ranks), rng.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT]))
                sent += 1
            time.sleep(0.0005)
        slowest = max(slowest, time.monotonic() - began)
        said = process.communicate()[1]
        assert process.returncode == 75, said
        last = num_lines(work / name)
        assert checkpoints(work / name)[-1] == last
        shutil.rmtree(work / name)
    say(f"signals during saves: {sent} signals in {trials} runs, all ended with 75 and a checkpoint, the slowest after {slowest:.2f} s")


def test_a_reader_of_the_log_that_goes_away_stops_nothing(work, undisturbed):
    process = subprocess.Popen([LORASHARD, "train", str(recipe(work, "no-reader"))], stderr=subprocess.PIPE)
    process.stderr.readline()
    process.stderr.close()
    assert process.wait(timeout=300) == 0
    assert adapter_hash(work / "no-reader") == undisturbed


def test_few_descriptors_are_enough_and_do_not_grow(work, say):
    steps = 2000 if LONG else 60
    path = recipe(work, "descriptors", train__max_train_steps=steps, train__total_batch_size=1, checkpoint__checkpoints_total_limit=2)
    process = subprocess.Popen([LORASHARD, "train", str(path)], stderr=subprocess.DEVNULL,
                               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    counts = []
    wait_until(process, lambda: num_lines(work / "descriptors") > 3, "third step")
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if num_lines(work / "descriptors") < steps:
                counts.append(len(os.listdir(f"/proc/{process.pid}/fd")))
        time.sleep(0.01)
    assert process.returncode == 0 and checkpoints(work / "descriptors") == [steps - 1, steps]
    # A checkpoint being written holds a few for a moment: compare the least of the early and of the late samples.
    third = max(1, len(counts) // 3)
    assert min(counts[-third:]) <= min(counts[:third]), counts
    say(f"descriptors over {steps} checkpoints: at least {min(counts[:third])} at first, {min(counts[-third:])} at last, "
        f"at most {max(counts)}, limit 64")


def test_too_little_memory_tears_nothing(work, undisturbed, say):
    limits = range(700, 1000, 10 if LONG else 60)
    ended = {}
    for limit in limits:
        path, run = recipe(work, "memory"), work / "memory"
        shutil.rmtree(run, ignore_errors=True)
        done = subprocess.run([LORASHARD, "train", str(path)], stderr=subprocess.PIPE, text=True,
                              preexec_fn=lambda most=limit << 20: resource.setrlimit(resource.RLIMIT_AS, (most, most)))
        ended[done.returncode] = ended.get(done.returncode, 0) + 1
        assert done.returncode == 0 or done.stderr, f"{limit} MiB: exit code {done.returncode} without a word"
        assert "passing over" not in lorashard("train", path).stderr, f"{limit} MiB"
        assert adapter_hash(run) == undisturbed
    say(f"too little memory: {len(limits)} limits, exit codes {dict(sorted(ended.items()))}, each went on to the same bytes")
    assert set(ended) != {0}, "no limit was too low"
