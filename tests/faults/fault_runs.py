"""What the fault tests share: runs under way whose ranks can be found, hurt and waited for."""

import os
import re
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))

from lorashard_runs import LORASHARD, make_base, make_pack, make_pictures  # noqa: E402

LONG = os.environ.get("LORASHARD_LONG_TESTS") == "1"
FOR_EVER = 1_000_000  # steps: the run ends because something ends it
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--quiet"]
SOON = 120  # seconds: longer is a hang, also on a busy machine
TORCH_SHIM = os.path.join(os.environ.get("LORASHARD_BUILD_DIR", "build/dev"), "tests", "libtorch_shim.so")


def make_inputs(folder):
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    make_base(folder / "base")
    return folder


def one_rank_differs(path, world_size, rank, environment, arguments=()):
    """A command for mpirun's ranks where rank `rank` alone has `environment` and `arguments` (LD_PRELOAD must not reach mpirun)."""
    train = [LORASHARD, "train", str(path)]
    other = ["env", *(f"{name}={value}" for name, value in environment.items()), *train, *map(str, arguments)]
    parts = [(rank, train), (1, other), (world_size - rank - 1, train)]
    command = []
    for count, words in parts:
        if count > 0:
            command += [":"] * bool(command) + ["-n", str(count), *words]
    return [*MPIRUN, *command]


def by_mpirun(path, world_size, *arguments):
    return [*MPIRUN, "-n", str(world_size), LORASHARD, "train", str(path), *map(str, arguments)]


def by_launch(path, world_size, max_restarts=0):
    return [LORASHARD, "launch", str(path), "--ranks", str(world_size), "--max-restarts", str(max_restarts)]


class Run:
    """Ranks under way; their stderr goes to a file beside the recipe `path`."""

    def __init__(self, path, command, env=None):
        self.path, self.log = path, path.with_suffix(".log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(list(map(str, command)), stderr=log, stdout=log, env=env)

    def ranks(self):
        """rank -> pid."""
        found = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    words = file.read().decode().split("\0")
                with open(f"/proc/{name}/environ", "rb") as file:
                    rank = re.search(rb"OMPI_COMM_WORLD_RANK=(\d+)", file.read())
            except OSError:
                continue
            if rank and os.path.basename(words[0]) == "lorashard" and str(self.path) in words:
                found[int(rank[1])] = int(name)
        return found

    def said(self):
        return self.log.read_text(errors="replace")

    def wait_for(self, condition, seconds=SOON):
        deadline = time.monotonic() + seconds
        over = False
        while not condition():
            assert not over, self.said()
            over = time.monotonic() >= deadline or self.process.poll() is not None  # what it did last is looked at once more
            time.sleep(0.01)

    def steps(self):
        file = self.path.with_suffix("") / "metrics.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def wait_for_step(self, step):
        self.wait_for(lambda: self.steps() >= step)
        return self.ranks()

    def hurt(self, rank, sent, after_step=3):
        """When the signal was sent."""
        os.kill(self.wait_for_step(after_step)[rank], sent)
        return time.monotonic()

    def end(self, since=None, what="", seconds=SOON):
        """Exit code and what was said; no process of the run is left."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"a hang: {self.said()}") from None
        if since is not None:
            print(f"\n{what}: job over in {time.monotonic() - since:.2f} s, exit code {code}")
        deadline = time.monotonic() + 15
        while self.ranks():
            assert time.monotonic() < deadline, "orphans"
            time.sleep(0.05)
        return code, self.said()

    def kill(self):
        for pid in [self.process.pid, *self.ranks().values()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
