"""Starts that can't become a run: ranks that differ, ranks that are missing, a world that isn't what it seems. All are told, none hangs."""

import os
import re
import shutil
import subprocess
import time

import pytest

from fault_runs import MPIRUN, Run, by_mpirun, make_inputs, one_rank_differs
from lorashard_runs import LORASHARD, adapter_hash, lorashard, make_pack, make_pictures, write_recipe


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("start"))


def recipe(work, name, **overrides):
    values = {"train__total_batch_size": 3, "train__max_train_steps": 3, "distributed__start_timeout_s": 60}
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name, **{**values, **overrides})


def refused(work, name, command, code=2):
    """Runs it; what was said, once nothing was trained and exactly one error was told."""
    since = time.monotonic()
    ended, said = Run(work / f"{name}.toml", command).end(since, name)
    assert ended == code, said
    assert not (work / name / "metrics.jsonl").exists() and "adapter:" not in said, said
    assert len(re.findall(r"^(rank \d+: )?error:", said, re.M)) == 1, said
    return said


def test_another_recipe_on_one_rank_is_refused_naming_key_and_rank(work):
    path = recipe(work, "other-recipe")
    said = refused(work, "other-recipe", one_rank_differs(path, 3, 1, {}, ["--set", "optimizer.learning_rate=2e-4"]))
    assert "the recipe differs between rank 0 and rank 1" in said and "learning_rate = 0.0002' on rank 1" in said, said


@pytest.mark.parametrize("rank", [0, 2])
def test_another_program_on_one_rank_is_refused(work, rank):
    """A copy of the program with one bit of its build id turned, as another build would have it."""
    path = recipe(work, f"other-program-{rank}")
    program = shutil.which(LORASHARD) or LORASHARD
    notes = subprocess.run(["readelf", "-n", program], capture_output=True, text=True, check=True).stdout
    build = bytes.fromhex(re.search(r"Build ID: ([0-9a-f]+)", notes)[1])
    content = open(program, "rb").read()
    assert content.count(build) == 1
    other = work / "other" / "lorashard"
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(content.replace(build, bytes([build[0] ^ 1]) + build[1:]))
    other.chmod(0o755)
    command = [str(other) if part == LORASHARD and i == rank else part for i, part in number_programs(one_rank_differs(path, 3, rank, {}))]
    said = refused(work, f"other-program-{rank}", command)
    assert "the program differs between rank 0 and rank" in said and f"on rank {max(rank, 1)}" in said, said


def number_programs(command):
    """(rank of the next program, word): ranks count up at each program's end."""
    rank = 0
    counts = [int(command[i + 1]) for i, word in enumerate(command) if word == "-n"]
    ends = iter(counts)
    for word in command:
        yield rank, word
        if word == LORASHARD:
            rank += next(ends)


@pytest.mark.parametrize("what", ["pack", "base"])
def test_other_files_under_the_same_path_on_one_host_are_refused(work, what):
    """A mount of its own for one rank, as on a host whose copy is another."""
    other = work / f"other-{what}"
    if what == "pack":
        make_pack(other, make_pictures(work / "other-pictures", seed=9))
    else:
        shutil.copytree(work / "base", other)
        (weights,) = (other / "unet").glob("*.safetensors")
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    path = recipe(work, f"other-{what}-run")
    mounted = ["unshare", "-m", "sh", "-c", f'mount --bind "{other}" "{work / what}" && exec "$0" "$@"', LORASHARD, "train", str(path)]
    command = [*MPIRUN, "-n", "2", LORASHARD, "train", str(path), ":", "-n", "1", *mounted]
    since = time.monotonic()
    ended, said = Run(path, command).end(since, f"another {what} on rank 2")
    assert ended == 2 and f"the {'base model' if what == 'base' else 'pack'} differs between rank 0 and rank 2" in said, said
    assert not (work / f"other-{what}-run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("variable, value, line", [("ATEN_CPU_CAPABILITY", "default", "instruction set in use"),
                                                   ("ONEDNN_MAX_CPU_ISA", "SSE41", "ONEDNN_MAX_CPU_ISA: SSE41")])
def test_processors_that_compute_other_bits_are_refused_when_deterministic(work, variable, value, line):
    path = recipe(work, f"mixed-{variable}")
    said = refused(work, f"mixed-{variable}", one_rank_differs(path, 3, 1, {variable: value}))
    assert "the processor differs between rank 0 and rank 1" in said and line in said and "train.deterministic = false" in said, said
    path = recipe(work, f"mixed-{variable}-fast", train__deterministic=False)
    code, said = Run(path, one_rank_differs(path, 3, 1, {variable: value})).end()
    assert code == 0, said


def test_a_rank_that_never_starts_ends_the_others_in_time(work):
    path = recipe(work, "missing", distributed__start_timeout_s=4)
    since = time.monotonic()
    command = [*MPIRUN, "-n", "2", LORASHARD, "train", str(path), ":", "-n", "1", "sleep", "1000"]
    code, said = Run(path, command).end(since, "a rank that never comes, start_timeout_s = 4")
    assert code == 76 and re.search(r"error: rank [01] of 3 \(.*\) has waited 4 s for the others to start", said), said
    assert not (work / "missing").exists()


def test_a_rank_that_ends_before_it_began_ends_the_others(work):
    path = recipe(work, "gone", distributed__start_timeout_s=10)
    since = time.monotonic()
    command = [*MPIRUN, "-n", "2", LORASHARD, "train", str(path), ":", "-n", "1", "true"]
    code, said = Run(path, command).end(since, "a rank that ends at once with 0")
    assert code != 0 and not (work / "gone").exists(), said


def test_two_processes_of_one_rank_are_no_hang(work):
    path = recipe(work, "twice", distributed__start_timeout_s=10)
    since = time.monotonic()
    code, said = Run(path, one_rank_differs(path, 3, 1, {"PMIX_RANK": 0})).end(since, "rank 0 twice, rank 1 missing")
    assert code != 0 and not (work / "twice" / "metrics.jsonl").exists(), said


def test_a_rank_of_a_world_that_mpi_does_not_know_is_refused(work):
    path = recipe(work, "inherited")
    inherited = {**os.environ, "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1"}
    said = lorashard("train", path, code=2, env=inherited).stderr
    assert "expected 3 ranks (OMPI_COMM_WORLD_SIZE), found 1" in said and "hint:" in said, said
    assert not (work / "inherited").exists()


def test_what_killed_runs_leave_is_not_in_the_way_of_the_next(work, tmp_path):
    """mpirun and all ranks killed at once, so that nobody tidies up: session folders, shared memory, the lease and its socket."""
    times = 20 if os.environ.get("LORASHARD_LONG_TESTS") == "1" else 3
    environment = {**os.environ, "OMPI_MCA_orte_tmpdir_base": str(tmp_path)}
    for _ in range(times):
        path = recipe(work, "stale", train__max_train_steps=1_000_000, checkpoint__checkpointing_steps=1)
        run = Run(path, by_mpirun(path, 3), env=environment)
        done = run.steps()
        run.wait_for(lambda: run.steps() > done and len(run.ranks()) == 3)
        run.kill()
        assert (work / "stale" / "run.lease").exists() and any(tmp_path.iterdir())
    last = run.steps() + 2
    said = lorashard("launch", recipe(work, "stale", train__max_train_steps=last), "--ranks", 3, env=environment).stderr
    assert "going on from" in said and "which is gone" in said
    lorashard("train", recipe(work, "fresh", train__max_train_steps=last))
    assert adapter_hash(work / "stale") == adapter_hash(work / "fresh")
    print(f"\nstale files of killed runs: {times + 1} of {times + 1} next starts worked")
