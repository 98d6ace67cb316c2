"""`lorashard launch --ranks`: what it does when ranks, mpirun or itself are killed, and when it is asked to stop."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from lorashard_runs import LORASHARD, adapter_hash, lorashard, make_base, make_pack, make_pictures, metrics, write_recipe

FOR_EVER = 1_000_000  # steps: the run ends because something ends it


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    make_base(folder / "base")
    return folder


@pytest.fixture(autouse=True)
def no_launch_outlives_its_test():
    yield
    while Launch.all:
        launch = Launch.all.pop()
        launch.process.kill()
        for pid in launch.pids("mpirun") + launch.pids("lorashard"):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def recipe(work, name, **overrides):
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name, **{"train__total_batch_size": 2, **overrides})


class Launch:
    """A launch under way; its stderr goes to a file."""

    all = []

    def __init__(self, path, *arguments, **kwargs):
        self.path, self.log = path, path.with_suffix(".log")
        with open(self.log, "ab") as log:
            # Under nohup a hang-up would be ignored, by lorashard too.
            self.process = subprocess.Popen([LORASHARD, "launch", str(path), *map(str, arguments)], stderr=log,
                                            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL), **kwargs)
        Launch.all.append(self)

    def pids(self, program):
        """Processes of this run: "mpirun" or "lorashard", the ranks."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    words = file.read().decode().split("\0")
            except OSError:
                continue
            if os.path.basename(words[0]) == program and "train" in words and str(self.path) in words:
                found.append(int(name))
        return found

    def wait_for(self, condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def wait_for_step(self, step):
        file = self.path.with_suffix("") / "metrics.jsonl"
        self.wait_for(lambda: file.exists() and len(file.read_text().splitlines()) >= step)

    def end(self, seconds=120):
        """Exit code and what was said; fails when a process of the run is left."""
        code = self.process.wait(seconds)
        assert not self.pids("lorashard") and not self.pids("mpirun")
        return code, self.log.read_text()


def test_a_killed_rank_is_restarted_from_the_newest_checkpoint_to_the_same_bytes(work):
    launch = Launch(recipe(work, "killed", train__max_train_steps=FOR_EVER, checkpoint__checkpointing_steps=10), "--ranks", 3, "--max-restarts", 1)
    restarts = []  # the steps they went on from
    while len(restarts) < 2:  # each time with progress: more often than --max-restarts
        launch.wait_for(lambda: (work / "killed" / f"checkpoint-{max(restarts, default=0) + 10}").exists())
        launch.wait_for(lambda: len(launch.pids("lorashard")) == 3)
        os.kill(launch.pids("lorashard")[-1], signal.SIGKILL)
        said_before = len(restarts)
        launch.wait_for(lambda: len(re.findall(r"starting again from checkpoint-\d+ ", launch.log.read_text())) > said_before)
        restarts = [int(step) for step in re.findall(r"starting again from checkpoint-(\d+) ", launch.log.read_text())]
    launch.wait_for(lambda: (work / "killed" / f"checkpoint-{max(restarts) + 10}").exists())
    launch.process.send_signal(signal.SIGTERM)
    code, said = launch.end()
    assert code == 75, said
    assert len(re.findall(r"killed by signal 9 .*starting again from checkpoint-\d+ \(1 of at most 1 restarts", said)) == 2, said
    last = len(metrics(work / "killed"))
    assert [line["global_step"] for line in metrics(work / "killed")] == list(range(1, last + 1))
    lorashard("train", recipe(work, "undisturbed", train__max_train_steps=last, checkpoint__checkpointing_steps=10))
    assert adapter_hash(work / "killed" / f"checkpoint-{last}") == adapter_hash(work / "undisturbed")


def test_a_killed_mpirun_leaves_no_rank_behind_and_is_restarted(work):
    launch = Launch(recipe(work, "no-mpirun", train__max_train_steps=FOR_EVER), "--ranks", 2)
    launch.wait_for(lambda: (work / "no-mpirun" / "checkpoint-3").exists())
    first = launch.pids("lorashard")
    os.kill(launch.pids("mpirun")[0], signal.SIGKILL)
    launch.wait_for(lambda: "mpirun was killed by signal 9" in launch.log.read_text())
    assert not set(first) & set(launch.pids("lorashard"))
    launch.wait_for(lambda: "going on from" in launch.log.read_text())
    launch.process.send_signal(signal.SIGTERM)
    assert launch.end()[0] == 75


def test_a_killed_launch_takes_its_ranks_along(work):
    launch = Launch(recipe(work, "no-launch", train__max_train_steps=FOR_EVER), "--ranks", 2)
    launch.wait_for_step(1)
    launch.process.kill()
    launch.process.wait()
    launch.wait_for(lambda: not launch.pids("lorashard") and not launch.pids("mpirun"), 20)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"])
def test_a_signal_ends_it_with_a_checkpoint_and_75(work, name):
    launch = Launch(recipe(work, name, train__max_train_steps=FOR_EVER), "--ranks", 2)
    launch.wait_for_step(2)
    launch.process.send_signal(getattr(signal, name))
    code, said = launch.end()
    assert code == 75 and said.count("stopped on request after step") == 1 and "starting again" not in said, said
    assert (work / name / f"checkpoint-{len(metrics(work / name))}").exists()


def test_asked_before_the_ranks_are_ready_it_ends_with_75_too(work):
    launch = Launch(recipe(work, "early", train__max_train_steps=FOR_EVER), "--ranks", 2)
    launch.wait_for(lambda: launch.pids("mpirun"))
    launch.process.send_signal(signal.SIGTERM)
    assert launch.end()[0] == 75


def test_a_second_signal_kills_ranks_that_do_not_answer_and_leaves_the_checkpoint_before_whole(work):
    path = recipe(work, "twice", train__max_train_steps=FOR_EVER, checkpoint__checkpointing_steps=3)
    launch = Launch(path, "--ranks", 2)
    launch.wait_for(lambda: (work / "twice" / "checkpoint-3").exists())
    os.kill(launch.pids("lorashard")[0], signal.SIGSTOP)
    launch.process.send_signal(signal.SIGTERM)
    launch.wait_for(lambda: "asked to stop" in launch.log.read_text())
    launch.process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    code, said = launch.end(30)
    print(f"gone after {time.monotonic() - start:.2f} s")
    assert code == 75 and "the ranks are killed" in said, said
    newest = max((int(name.split("-")[1]) for name in os.listdir(work / "twice") if re.fullmatch(r"checkpoint-\d+", name)))
    said = lorashard("launch", path, "--ranks", 1, "--set", f"train.max_train_steps={newest + 2}").stderr
    assert f"at step {newest}" in said, said


@pytest.fixture
def fake_mpirun(tmp_path):
    """An mpirun that ends with the codes of a list, one a start; returns what launch made of it and how often it was started."""
    program = tmp_path / "bin" / "mpirun"
    program.parent.mkdir()
    program.write_text(f'#!/bin/bash\necho >>{tmp_path}/starts\nread -r -a codes <{tmp_path}/codes\n'
                       f'code=${{codes[$(wc -l <{tmp_path}/starts) - 1]}}\n[ "$code" -gt 128 ] && kill -$((code - 128)) $$\nexit "$code"\n')
    program.chmod(0o755)

    def run(path, codes, *arguments):
        (tmp_path / "starts").unlink(missing_ok=True)
        (tmp_path / "codes").write_text(" ".join(map(str, codes)) + "\n")
        done = subprocess.run([LORASHARD, "launch", str(path), "--ranks", "2", *arguments], capture_output=True, text=True, timeout=60,
                              env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"})
        return done.returncode, (tmp_path / "starts").read_text().count("\n"), done.stderr

    return run


@pytest.mark.parametrize("code", [0, 2, 65, 70, 74, 75, 77])
def test_what_another_start_would_not_change_is_not_restarted(work, fake_mpirun, code):
    assert fake_mpirun(recipe(work, "codes"), [code] * 9)[:2] == (code, 1)


@pytest.mark.parametrize("code", [76, 137, 139, 1])
def test_losses_without_progress_end_it_with_76_and_the_reason(work, fake_mpirun, code):
    assert fake_mpirun(recipe(work, "codes"), [code] * 9)[:2] == (76, 4)
    ended, starts, said = fake_mpirun(recipe(work, "codes"), [code] * 9, "--max-restarts", "1")
    assert (ended, starts) == (76, 2) and "gave up: 1 restarts made no progress beyond step 0" in said and "hint:" in said
    assert fake_mpirun(recipe(work, "codes"), [code] * 9, "--max-restarts", "0")[:2] == (76, 1)


def test_a_loss_then_the_end_is_success(work, fake_mpirun):
    assert fake_mpirun(recipe(work, "codes"), [137, 76, 0])[:2] == (0, 3)


def test_a_run_that_would_begin_anew_is_not_restarted(work, fake_mpirun):
    ended, starts, said = fake_mpirun(recipe(work, "anew", checkpoint__resume_from_checkpoint="none"), [76] * 9)
    assert (ended, starts) == (76, 1) and 'resume_from_checkpoint = "latest"' in said


def test_without_mpirun_the_error_says_what_to_install(work, tmp_path):
    said = lorashard("launch", recipe(work, "no-path"), "--ranks", 2, code=2, env={**os.environ, "PATH": str(tmp_path)}).stderr
    assert "mpirun" in said and "openmpi-bin" in said


@pytest.mark.parametrize("wrong", [[], ["--ranks", 0], ["--ranks", 2, "--max-restarts", -1], ["--ranks", 2, "--nodes", 2]])
def test_wrong_use(work, wrong):
    lorashard("launch", recipe(work, "wrong"), *wrong, code=2)


def test_mpirun_by_hand_writes_the_same_bytes(work):
    lorashard("train", recipe(work, "alone"))
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "3", shutil.which(LORASHARD) or LORASHARD, "train"]
    subprocess.run([*command, recipe(work, "by-hand")], check=True, capture_output=True, timeout=300)
    assert adapter_hash(work / "by-hand") == adapter_hash(work / "alone")
