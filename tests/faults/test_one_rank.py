"""One rank among several that is slow, throws, is killed again and again, has a bit flipped, a NaN, another clock, or alone hears of a stop.

Figures are printed (pytest -s) and kept in docs/reliability.md; tests hold codes, names and bytes.
"""

import json
import os
import random
import re
import signal
import struct
import subprocess
import time

import pytest

from fault_runs import FOR_EVER, LONG, TORCH_SHIM, Run, by_launch, by_mpirun, make_inputs, one_rank_differs
from lorashard_runs import LORASHARD, adapter_hash, lorashard, metrics, write_recipe

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("one-rank"))


def recipe(work, name, **overrides):
    values = {"train__total_batch_size": 3, "checkpoint__checkpointing_steps": 1, "distributed__heartbeat_s": 0.5}
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name, **{**values, **overrides})


def shim(what, first=1, times=0, **more):
    return {"LD_PRELOAD": TORCH_SHIM, "SHIM_DO": what, "SHIM_FROM": first, "SHIM_TIMES": times, **more}


def test_a_rank_killed_again_and_again_costs_few_steps_and_no_bit(work):
    times, rng, every = (50 if LONG else 4), random.Random(5), 2
    lasting = {"train__max_train_steps": 12 * times, "checkpoint__checkpointing_steps": every}
    lorashard("train", recipe(work, "unkilled", **lasting))
    run = Run(recipe(work, "killed", **lasting), by_launch(work / "killed.toml", 3, max_restarts=3))
    kills, slowest, reached = 0, 0.0, 0
    while run.process.poll() is None and kills < times:
        run.wait_for(lambda: run.process.poll() is not None or (run.steps() > reached and len(run.ranks()) == 3))
        time.sleep(rng.uniform(0, 0.3))
        pids, restarts = run.ranks(), run.said().count("starting again")
        if len(pids) < 3:
            continue
        os.kill(pids[rng.randrange(3)], signal.SIGKILL)
        began, kills = time.monotonic(), kills + 1
        run.wait_for(lambda: run.process.poll() is not None or run.said().count("starting again") > restarts)
        slowest, reached = max(slowest, time.monotonic() - began), run.steps()
    code, said = run.end(seconds=600)
    assert code == 0, said
    lost = [int(done) - int(kept) for done, kept in re.findall(r"after step (\d+); starting again from checkpoint-(\d+)", said)]
    assert adapter_hash(work / "killed") == adapter_hash(work / "unkilled")
    assert [line["global_step"] for line in metrics(work / "killed")] == list(range(1, 12 * times + 1))
    # One checkpoint may be in flight: what is lost is less than two intervals.
    assert kills > 0 and max(lost, default=0) <= 2 * every, lost
    print(f"\nkill -9 of a random rank, {kills} times, checkpoints every {every} steps: same bytes, at most {max(lost, default=0)} steps "
          f"lost, job over after at most {slowest:.2f} s")


def test_a_rank_that_is_slow_in_every_step_is_reported_by_name_and_host(work):
    lorashard("train", recipe(work, "not-slow", train__max_train_steps=24))
    # A fifth of a second; more where a busy machine takes longer for a micro-batch than that (the rule is a ratio).
    slower = max(200, int(2 * sorted(line["step_ms"] for line in metrics(work / "not-slow"))[12]))
    path = recipe(work, "slow", train__max_train_steps=24)
    code, said = Run(path, one_rank_differs(path, 3, 2, shim("sleep", SHIM_MS=slower))).end()
    assert code == 0, said
    line = re.search(rf"^rank 0: warning: rank 2 \({os.uname().nodename}, local rank 2\) is slow: in steps (\d+) to (\d+)", said, re.M)
    assert line and int(line[2]) <= 20, said
    print(f"\nrank 2 slower by {slower} ms in every step: reported after step {line[2]}: {line[0]}")
    assert adapter_hash(work / "slow") == adapter_hash(work / "not-slow")


@pytest.mark.parametrize("what, code, cause", [
    ("throw", 70, "rank 1: error: lorashard failed: the shim throws"), ("bad_alloc", 70, "rank 1: error: lorashard failed: std::bad_alloc"),
    ("segv", 139, ""), ("mpi_abort", 9, ""), ("exit", None, "")])
def test_a_rank_that_fails_alone_ends_the_run_with_the_cause(work, what, code, cause):
    path = recipe(work, f"fails-{what}", train__max_train_steps=FOR_EVER, checkpoint__checkpointing_steps=1000)
    run = Run(path, one_rank_differs(path, 3, 1, shim(what, first=4)))
    run.wait_for(lambda: run.steps() >= 3)
    ended, said = run.end(time.monotonic(), f"{what} in rank 1")
    assert ended == code if code is not None else ended != 0, said
    assert cause in said, said


def test_a_rank_that_beats_but_stands_still_ends_the_run_after_work_timeout_s(work):
    path = recipe(work, "stands", train__max_train_steps=FOR_EVER, distributed__work_timeout_s=10)
    run = Run(path, one_rank_differs(path, 3, 1, shim("hang", first=6)))
    run.wait_for(lambda: run.steps() >= 5)
    code, said = run.end(time.monotonic(), "rank 1 stands still and beats, work_timeout_s = 10")
    assert code == 76, said
    assert re.search(r"^rank 0: error: rank 1 \(.*\) is lost: it beats, but the others have waited for it in all_reduce", said, re.M), said


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_request_to_stop_that_reaches_one_rank_stops_all_at_the_same_step(work, rank):
    path = recipe(work, f"usr1-{rank}", train__max_train_steps=FOR_EVER, train__total_batch_size=4, checkpoint__checkpointing_steps=1000)
    run = Run(path, by_mpirun(path, 4))
    since = run.hurt(rank, signal.SIGUSR1)
    code, said = run.end(since, f"USR1 to rank {rank} alone")
    assert code == 75 and said.count("stopped on request after step") == 1, said
    done = len(metrics(path.with_suffix("")))
    assert f"after step {done} of" in said and (path.with_suffix("") / f"checkpoint-{done}").exists(), said


def test_usr1_to_mpirun_stops_with_a_checkpoint_and_75(work):
    path = recipe(work, "usr1-mpirun", train__max_train_steps=FOR_EVER, checkpoint__checkpointing_steps=1000)
    run = Run(path, by_mpirun(path, 3))
    run.wait_for_step(3)
    run.process.send_signal(signal.SIGUSR1)
    code, said = run.end(time.monotonic(), "USR1 to mpirun")
    assert code == 75 and (path.with_suffix("") / f"checkpoint-{run.steps()}").exists(), said


def test_term_to_mpirun_leaves_a_checkpoint_that_goes_on_to_the_same_bytes(work):
    path = recipe(work, "term-mpirun", train__max_train_steps=FOR_EVER)
    run = Run(path, by_mpirun(path, 3))
    run.wait_for_step(3)
    run.process.send_signal(signal.SIGTERM)
    code, said = run.end(time.monotonic(), "TERM to mpirun")
    assert code != 0, said
    last = run.steps() + 3
    resumed = lorashard("launch", recipe(work, "term-mpirun", train__max_train_steps=last), "--ranks", 2).stderr
    assert "going on from" in resumed and "passing over" not in resumed
    lorashard("train", recipe(work, "no-term", train__max_train_steps=last))
    assert adapter_hash(work / "term-mpirun") == adapter_hash(work / "no-term")


def test_the_signal_handler_makes_no_system_call(work):
    path = recipe(work, "traced", train__max_train_steps=FOR_EVER, checkpoint__checkpointing_steps=1000)
    trace = work / "trace.txt"
    run = Run(path, ["strace", "-f", "-o", trace, "-e", "trace=write,openat,rename,fsync,futex,read,close,rt_sigreturn", LORASHARD, "train", path])
    run.wait_for_step(1)
    (pid,) = [int(name) for name in filter(str.isdigit, os.listdir("/proc")) if is_train(name, path)]
    for sent in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        os.kill(pid, sent)
    code, said = run.end()
    assert code == 75, said
    calls, signalled = {}, 0
    for line in trace.read_text().splitlines():
        thread, _, what = line.partition(" ")
        if calls.get(thread, "").startswith("--- SIG"):
            signalled += 1
            assert re.match(r"rt_sigreturn|--- SIG", what.strip()), f"after {calls[thread]}: {what}"
        calls[thread] = what.strip()
    assert signalled >= 1


def is_train(pid, path):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().decode().split("\0")
    except OSError:
        return False
    return os.path.basename(words[0]) == "lorashard" and str(path) in words


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(work):
    few = {"train__max_train_steps": 8}
    for name, what in (("nan", "nan"), ("inf", "inf")):
        path = recipe(work, name, **few)
        code, said = Run(path, one_rank_differs(path, 3, 1, shim(what, first=4, times=1))).end()
        assert code == 0, said
        assert [line["global_step"] for line in metrics(work / name) if line.get("skipped")] == [4]
    # Rank 1's fourth micro-batch is the eleventh of the run: one process that loses the same one skips the same step.
    path = recipe(work, "nan-alone", **few)
    environment = {**os.environ, **{key: str(value) for key, value in shim("nan", first=11, times=1).items()}}
    lorashard("train", path, env=environment)
    assert adapter_hash(work / "nan") == adapter_hash(work / "inf") == adapter_hash(work / "nan-alone")


def test_a_rank_whose_gradients_stay_not_finite_ends_the_run_with_77_and_publishes_no_nan(work):
    import torch
    from safetensors.torch import load_file

    path = recipe(work, "nan-for-ever", train__max_train_steps=FOR_EVER)
    code, said = Run(path, one_rank_differs(path, 3, 2, shim("nan", first=4))).end()
    run = work / "nan-for-ever"
    assert code == 77 and "8 steps in a row, up to step 11" in said, said
    assert not (run / "pytorch_lora_weights.safetensors").exists()
    files = list(run.glob("checkpoint-*/*.safetensors"))
    assert files
    for file in files:
        assert all(torch.isfinite(value).all() for value in load_file(file).values() if value.is_floating_point()), file


def raw_tensor(file, part):
    """The bytes of the largest tensor whose name holds one of `part`."""
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__" and any(word in name for word in part)]
    start, end = max(spans, key=lambda span: span[1] - span[0])
    return content[8 + size + start : 8 + size + end]


def flip_bit_in_memory(pid, pattern):
    """Flips one bit in every place of a stopped process's memory that holds `pattern`; how many."""
    found = 0
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps, open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            if not rights.startswith("rw") or "[v" in line:
                continue
            start, end = (int(value, 16) for value in span.split("-"))
            try:
                memory.seek(start)
                content = memory.read(end - start)
            except OSError:
                continue
            at = content.find(pattern)
            while at >= 0:
                memory.seek(start + at)
                memory.write(bytes([content[at] ^ 1]))
                found += 1
                at = content.find(pattern, at + 1)
    return found


def test_one_flipped_bit_of_a_weight_on_one_rank_is_found_and_the_rank_named(work):
    path = recipe(work, "flipped", train__max_train_steps=FOR_EVER, distributed__digest_steps=5, distributed__collective_timeout_s=60)
    run = Run(path, by_mpirun(path, 3))
    flipped, step = 0, 2
    while not flipped:
        pid = run.wait_for_step(step)[1]
        os.kill(pid, signal.SIGSTOP)
        stood = -1
        while stood != (stood := run.steps()):
            time.sleep(0.7)  # until rank 0 waits for rank 1, and its checkpoint is there
        whole = [folder for folder in path.with_suffix("").glob("checkpoint-*") if folder.name[11:].isdigit()]
        folders = sorted(whole, key=lambda folder: int(folder.name[11:]))
        for folder in folders[-2:]:
            weights = raw_tensor(folder / "pytorch_lora_weights.safetensors", ("down", "lora_A"))
            flipped += flip_bit_in_memory(pid, weights[:64])
        os.kill(pid, signal.SIGCONT)
        step = stood + 2
    code, said = run.end()
    assert code == 70, said
    named = re.search(r"comparing the adapter's weights after step (\d+): rank 1 \(.*\) differs from the 2 other ranks", said)
    assert named and 0 <= int(named[1]) - stood <= 5 + 1, said
    print(f"\none bit flipped in rank 1's memory in step {stood + 1}, digest_steps = 5: found after step {named[1]}")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_clock_that_jumps_by_an_hour_on_one_rank_disturbs_nothing(work, rank):
    assert os.path.exists(FAKETIME), "apt-get install --no-install-recommends faketime"
    lasting = {"train__max_train_steps": 40, "distributed__collective_timeout_s": 6}
    clock = work / f"clock-{rank}"
    clock.write_text("+0s\n")
    path = recipe(work, f"jumps-{rank}", **lasting)
    environment = {"LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": clock, "FAKETIME_NO_CACHE": 1, "FAKETIME_DONT_FAKE_MONOTONIC": 1}
    run = Run(path, one_rank_differs(path, 3, rank, environment))
    for step, jump in ((5, "+1h"), (12, "-1h"), (20, "+0s")):
        run.wait_for_step(step)
        clock.write_text(f"{jump}\n")
    code, said = run.end()
    assert code == 0 and "is lost" not in said and "is silent" not in said, said
    if not (work / "steady").exists():
        lorashard("train", recipe(work, "steady", **lasting))
    assert adapter_hash(path.with_suffix("")) == adapter_hash(work / "steady")
    assert (path.with_suffix("") / "checkpoint-40").exists()
