"""Ranks that are stopped, slowed, killed or leave: the run ends with 76 and the rank's name, or goes on to the same bytes.

The figures printed (pytest -s) are in docs/reliability.md. Limits on time are generous: a busy machine must not fail a test.
"""

import os
import re
import signal
import subprocess
import time

import pytest

from fault_runs import FOR_EVER, Run, by_launch, by_mpirun, make_inputs
from lorashard_runs import adapter_hash, lorashard, write_recipe


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("hang"))


def recipe(work, name, **overrides):
    values = {"train__total_batch_size": 3, "train__max_train_steps": FOR_EVER, "checkpoint__checkpointing_steps": 100,
              "distributed__collective_timeout_s": 3, "distributed__heartbeat_s": 0.5, "distributed__straggler_warning_s": 1}
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name, **{**values, **overrides})


def start(path, launch=False, max_restarts=0):
    return Run(path, by_launch(path, 3, max_restarts) if launch else by_mpirun(path, 3))


@pytest.mark.parametrize("launch", [False, True], ids=["mpirun", "launch"])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_stopped_rank_ends_the_run_with_76_and_its_name_on_all_ranks(work, rank, launch):
    run = start(recipe(work, f"stopped-{rank}-{launch}"), launch=launch)
    code, said = run.end(run.hurt(rank, signal.SIGSTOP), f"SIGSTOP of rank {rank}, collective_timeout_s = 3")
    assert code == 76, said
    for other in {0, 1, 2} - {rank}:
        assert re.search(rf"^rank {other}: error: rank {rank} \(.*, local rank {rank}\) is lost: no heartbeat for", said, re.M), said
    if launch:
        assert "a rank was lost" in said and "0 restarts" in said, said


def test_a_stopped_rank_is_restarted_by_launch_to_the_same_bytes(work):
    lasting = {"train__max_train_steps": 60, "checkpoint__checkpointing_steps": 10}
    lorashard("train", recipe(work, "undisturbed", **lasting))
    run = start(recipe(work, "restarted", **lasting), launch=True, max_restarts=1)
    run.wait_for(lambda: (work / "restarted" / "checkpoint-20").exists())
    since = time.monotonic()
    os.kill(run.ranks()[1], signal.SIGSTOP)
    code, said = run.end(since, "SIGSTOP of rank 1 under launch, restarted, to the end of the run")
    assert code == 0 and "rank 1" in said and "starting again from checkpoint-" in said, said
    assert adapter_hash(work / "restarted") == adapter_hash(work / "undisturbed")


def test_a_rank_that_was_stopped_for_a_while_goes_on_with_a_warning_and_the_same_bytes(work):
    lasting = {"train__max_train_steps": 60, "checkpoint__checkpointing_steps": 10, "distributed__collective_timeout_s": 30}
    lorashard("train", recipe(work, "no-pause", **lasting))
    run = start(recipe(work, "pause", **lasting))
    run.hurt(1, signal.SIGSTOP)
    run.wait_for(lambda: "rank 1 (" in run.said())
    time.sleep(1)
    os.kill(run.ranks()[1], signal.SIGCONT)
    code, said = run.end()
    assert code == 0, said
    # Said once, and once more only after it was back: a busy machine may make it late again.
    words = re.findall(r"warning: rank 1 \(.*\) is (silent|late|back after)", said)
    assert words and all((word == "back after") == (i % 2 == 1) for i, word in enumerate(words)) and words[-1] == "back after", said
    assert adapter_hash(work / "pause") == adapter_hash(work / "no-pause")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run_with_76_under_launch(work, rank):
    run = start(recipe(work, f"killed-{rank}", distributed__collective_timeout_s=60), launch=True)
    code, said = run.end(run.hurt(rank, signal.SIGKILL), f"SIGKILL of rank {rank}")
    assert code == 76 and "killed by signal 9" in said, said


@pytest.fixture(scope="module")
def leaver(work):
    """A library that makes the rank $LEAVER leave with $LEAVER_CODE, by _exit, once the file $LEAVER_NOW is there."""
    source = work / "leaver.c"
    source.write_text("""
        #include <pthread.h>
        #include <stdlib.h>
        #include <string.h>
        #include <unistd.h>
        static void* leave(void* unused) {
          while (access(getenv("LEAVER_NOW"), F_OK) != 0) usleep(10000);
          _exit(atoi(getenv("LEAVER_CODE")));
          return unused;
        }
        __attribute__((constructor)) static void start(void) {
          const char* rank = getenv("OMPI_COMM_WORLD_RANK");
          pthread_t thread;
          if (rank != 0 && strcmp(rank, getenv("LEAVER")) == 0) pthread_create(&thread, 0, leave, 0);
        }""")
    subprocess.run(["cc", "-shared", "-fPIC", "-pthread", "-o", work / "leaver.so", source], check=True)
    return work / "leaver.so"


@pytest.mark.parametrize("code, expected", [(0, 76), (70, 70)])
def test_a_rank_that_leaves_without_a_word_ends_the_run(work, leaver, monkeypatch, code, expected):
    now = work / f"leave-{code}"
    for name, value in {"LD_PRELOAD": leaver, "LEAVER": 1, "LEAVER_NOW": now, "LEAVER_CODE": code}.items():
        monkeypatch.setenv(name, str(value))
    run = start(recipe(work, f"leaves-{code}", distributed__collective_timeout_s=60), launch=True)
    run.wait_for_step(3)
    since = time.monotonic()
    now.touch()
    ended, said = run.end(since, f"_exit({code}) in rank 1")
    assert ended == expected, said


def test_all_ranks_stopped_and_let_go_on_blame_nobody(work):
    run = start(recipe(work, "all-paused", train__max_train_steps=40))
    ranks = run.wait_for_step(3).values()
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(5)  # longer than collective_timeout_s
    for pid in ranks:
        os.kill(pid, signal.SIGCONT)
    code, said = run.end()
    assert code == 0 and "is lost" not in said, said


def test_a_rank_that_aborts_ends_the_run_and_keeps_its_code(work):
    run = start(recipe(work, "aborts"))
    code, said = run.end(run.hurt(1, signal.SIGABRT), "SIGABRT of rank 1")
    assert code == 128 + signal.SIGABRT, said


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_stopped_before_the_first_step_is_found_too(work, rank):
    run = start(recipe(work, f"early-{rank}"))
    run.wait_for(lambda: len(run.ranks()) == 3 and (work / f"early-{rank}").exists())
    since = time.monotonic()
    os.kill(run.ranks()[rank], signal.SIGSTOP)
    code, said = run.end(since, f"SIGSTOP of rank {rank} while the run starts")
    assert code == 76 and re.search(rf"error: rank {rank} \(.*\) is lost", said), said
