"""A long run under `lorashard launch` that something happens to every half minute; in the end its adapter must be that of a run nothing
happened to, byte for byte.

    python tests/faults/soak.py --minutes 120 --seed 1        # LORASHARD names the program; else build/dev/lorashard

Says what it does as it goes, and at the end what was lost; exit code 1 where a byte differs or the run did what it must not.
"""

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fault_runs import FOR_EVER, make_inputs
from lorashard_runs import LORASHARD, adapter_hash, lorashard, write_recipe

STARTED_AGAIN = (75, 76, -signal.SIGKILL)  # stopped on request, lost, launch itself killed


class Soak:
    def __init__(self, folder, seed, every):
        self.rng, self.every, self.folder = random.Random(seed), every, folder
        self.run, self.log = folder / "run", folder / "soak.log"
        make_inputs(folder)
        self.process, self.ranks, self.high, self.lost, self.starts, self.seen = None, 0, 0, 0, 0, 0
        self.did = collections.Counter()

    def recipe(self, name, steps):
        return write_recipe(self.folder / f"{name}.toml", self.folder / "base", self.folder / "pack", self.folder / name,
                            train__total_batch_size=4, train__max_train_steps=steps, checkpoint__checkpointing_steps=10,
                            checkpoint__checkpoints_total_limit=5, checkpoint__on_disk_full="continue", distributed__collective_timeout_s=5,
                            distributed__heartbeat_s=0.5, distributed__straggler_warning_s=1, distributed__digest_steps=50)

    def say(self, text):
        print(f"{time.monotonic() - self.began:7.1f} s  step {self.step():6d}  {text}", flush=True)

    def step(self):
        """The last whole line of metrics.jsonl."""
        try:
            with open(self.run / "metrics.jsonl", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().split(b"\n")[:-1]
            return json.loads(lines[-1])["global_step"]
        except (OSError, IndexError, ValueError):
            return 0

    def start(self):
        self.ranks = self.rng.randint(2, 4)
        self.starts += 1
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([LORASHARD, "launch", self.recipe("run", FOR_EVER), "--ranks", str(self.ranks)], stderr=log)

    def look(self):
        """Counts what restarts lost; starts again what has ended. Called all the time."""
        self.high = max(self.high, self.step())
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        for line in re.findall(r"going on from '.*' at step (\d+)\n", said[self.seen :]):
            self.lost += max(0, self.high - int(line))
            self.high = int(line)
        self.seen = said.rfind("\n") + 1
        code = self.process.poll()
        if code is None:
            return
        if code not in STARTED_AGAIN:
            raise SystemExit(f"soak: exit code {code}\n{said[-3000:]}")
        self.start()

    def wait(self, seconds, condition=lambda: False):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not condition():
            self.look()
            time.sleep(0.05)

    def pids(self, program="lorashard"):
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    words = file.read().decode().split("\0")
            except OSError:
                continue
            if os.path.basename(words[0]) == program and "train" in words and str(self.folder / "run.toml") in words:
                found.append(int(name))
        return found

    def send(self, pids, sent):
        for pid in pids:
            try:
                os.kill(pid, sent)
            except ProcessLookupError:
                pass

    def newest(self):
        folders = [path for path in self.run.glob("checkpoint-*") if path.name[11:].isdigit()]
        return max(folders, key=lambda path: int(path.name[11:]), default=None)

    # The faults. Each says in its docstring which row of docs/reliability.md it is.
    def kill_a_rank(self):
        """1"""
        self.send([self.rng.choice(self.pids())], signal.SIGKILL)

    def kill_ranks_and_mpirun(self):
        """2"""
        self.send([*self.pids(), *self.pids("mpirun")], signal.SIGKILL)

    def kill_launch(self):
        """2"""
        self.process.kill()
        self.process.wait()
        self.wait_until_gone()

    def wait_until_gone(self):
        deadline = time.monotonic() + 60
        while self.pids() and time.monotonic() < deadline:
            time.sleep(0.05)

    def pause_a_rank(self):
        """3"""
        pid = self.rng.choice(self.pids())
        self.send([pid], signal.SIGSTOP)
        self.wait(2)
        self.send([pid], signal.SIGCONT)

    def stop_a_rank(self):
        """4"""
        self.send([self.rng.choice(self.pids())], signal.SIGSTOP)

    def slow_a_rank(self):
        """5"""
        pid = self.rng.choice(self.pids())
        for _ in range(15):
            self.send([pid], signal.SIGSTOP)
            self.wait(0.2)
            self.send([pid], signal.SIGCONT)
            self.wait(0.05)

    def crash_a_rank(self):
        """6"""
        self.send([self.rng.choice(self.pids())], self.rng.choice([signal.SIGABRT, signal.SIGSEGV]))

    def terminate_launch(self):
        """7"""
        self.process.send_signal(signal.SIGTERM)

    def terminate_mpirun(self):
        """7"""
        self.send(self.pids("mpirun"), signal.SIGTERM)

    def storm_of_signals(self):
        """8"""
        for _ in range(200):
            self.send(self.pids()[:1], self.rng.choice([signal.SIGTERM, signal.SIGUSR1]))
            time.sleep(0.002)

    def usr1_to_one_rank(self):
        """9"""
        self.send([self.rng.choice(self.pids())], signal.SIGUSR1)

    def second_run(self):
        """13"""
        try:
            done = subprocess.run([LORASHARD, "train", self.folder / "run.toml"], stderr=subprocess.PIPE, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return  # the first had just ended, so this one was it; it is killed now
        if done.returncode != 2:
            raise SystemExit(f"soak: a second run in the same folder ended with {done.returncode}\n{done.stderr}")

    def fill_the_disk(self):
        """16"""
        filler = self.run / "filler"
        try:
            with open(filler, "wb") as file:
                while True:
                    file.write(b"\0" * 65536)
                    file.flush()
        except OSError:
            pass
        self.wait(4)
        filler.unlink()

    def damage_the_newest_checkpoint(self):
        """19"""
        self.send([self.process.pid], signal.SIGKILL)
        self.process.wait()
        self.wait_until_gone()
        newest = self.newest()
        if newest is None:
            return
        file = self.rng.choice(sorted(path for path in newest.iterdir() if path.is_file()))
        how = self.rng.choice(["removed", "cut", "flipped"])
        if how == "removed":
            file.unlink()
        elif how == "cut":
            os.truncate(file, file.stat().st_size // 2)
        else:
            content = bytearray(file.read_bytes())
            content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
            file.write_bytes(content)
        self.say(f"  {file.relative_to(self.run)} {how}")

    FAULTS = [kill_a_rank, kill_ranks_and_mpirun, kill_launch, pause_a_rank, stop_a_rank, slow_a_rank, crash_a_rank, terminate_launch,
              terminate_mpirun, storm_of_signals, usr1_to_one_rank, second_run, fill_the_disk, damage_the_newest_checkpoint]

    def hurt(self):
        # Something that has a step to lose: a start that never gets anywhere is another test's.
        before = self.step()
        self.wait(120, lambda: self.step() > before and len(self.pids()) >= 2)
        if not self.pids():
            return
        fault = self.rng.choice(self.FAULTS)
        self.did[fault.__name__] += 1
        self.say(f"{fault.__name__} (row {fault.__doc__})")
        try:
            fault(self)
        except IndexError:
            pass  # its ranks ended this moment

    def soak(self, minutes):
        self.began = time.monotonic()
        self.start()
        next_fault = self.began + self.every
        while time.monotonic() < self.began + 60 * minutes:
            self.wait(max(0.0, next_fault - time.monotonic()))
            next_fault = time.monotonic() + self.every * self.rng.uniform(0.7, 1.3)
            self.hurt()
        # An end: stopped on request, at whatever step that is.
        while True:
            self.process.send_signal(signal.SIGTERM)
            code = self.process.wait()
            self.look_once()
            if code == 75 and self.newest() is not None:
                break
            self.start()
            self.wait(60, lambda: len(self.pids()) > 0)
        took = time.monotonic() - self.began
        # What stops is asked for may fall into the start: go on from where the newest whole checkpoint is.
        last = self.step() + 5
        self.say(f"stopped; to step {last}, and the same without faults")
        lorashard("launch", self.recipe("run", last), "--ranks", 3, timeout=None)
        lorashard("launch", self.recipe("undisturbed", last), "--ranks", 2, "--set", "checkpoint.checkpointing_steps=1000000", timeout=None)
        steps = [json.loads(line)["global_step"] for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        same = adapter_hash(self.run) == adapter_hash(self.folder / "undisturbed")
        result = {"minutes": round(took / 60, 1), "faults": sum(self.did.values()), "steps": last, "lost_steps": self.lost,
                  "goodput": round(last / (last + self.lost), 4), "starts_by_hand": self.starts,
                  "restarts_by_launch": self.log.read_text(errors="replace").count("starting again"),
                  "every_step_once": steps == list(range(1, last + 1)), "same_bytes": same, "did": dict(sorted(self.did.items()))}
        print(json.dumps(result), flush=True)
        return same and result["every_step_once"]

    def look_once(self):
        self.high = max(self.high, self.step())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=30, help="seconds between faults, about")
    parser.add_argument("--work", type=Path, help="an empty folder; absent: a temporary one, removed at the end")
    options = parser.parse_args()
    folder = options.work or Path(tempfile.mkdtemp(prefix="lorashard-soak-"))
    folder.mkdir(exist_ok=True)
    disk = folder / "run"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", disk], check=False).returncode == 0
    if not mounted:
        print("soak: no right to mount a small disk: the disk is not filled", flush=True)
        Soak.FAULTS = [fault for fault in Soak.FAULTS if fault is not Soak.fill_the_disk]
    soak = Soak(folder, options.seed, options.every)
    try:
        good = soak.soak(options.minutes)
    finally:
        if soak.process is not None and soak.process.poll() is None:
            soak.process.kill()
        soak.wait_until_gone()
        if mounted:
            subprocess.run(["umount", "-l", disk], check=False)
        if options.work is None:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
