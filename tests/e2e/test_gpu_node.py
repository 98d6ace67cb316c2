"""bench/gpu_node.py, the one command for a node with GPUs: whatever of it needs no GPU."""

import os
import subprocess
import sys

import pytest

from lorashard_runs import REPO

BUILD = os.environ.get("LORASHARD_BUILD_DIR", os.path.join(REPO, "build/dev"))


def gpu_node(*arguments):
    return subprocess.run([sys.executable, os.path.join(REPO, "bench/gpu_node.py"), "--build", BUILD, *map(str, arguments)],
                          capture_output=True, text=True, timeout=1200)


def test_on_the_cpu_replay_and_ranks_hold_in_every_precision(tmp_path):
    done = gpu_node("--device", "cpu", "--parts", "doctor", "replay", "ranks", "pictures", "--work", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", "doctor:"], ["ok", "replay:"], ["ok", "ranks:"], ["ok", "pictures:"]], done.stdout
    assert all(precision in lines[1] for precision in ("fp32", "bf16", "fp16"))


def test_speed_gives_a_figure_for_each_precision_and_says_what_it_left_out(tmp_path):
    done = gpu_node("--device", "cpu", "--parts", "speed", "--steps", 6, "--train-batch-size", 1, "--work", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("images/s") == 6 and "no --script was given" in done.stdout


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has an NVIDIA GPU")
def test_without_a_gpu_each_part_says_why_it_did_not_run(tmp_path):
    done = gpu_node("--work", tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6 and all(line.startswith("not run ") for line in lines), done.stdout


def test_a_replay_that_is_off_fails(tmp_path):
    """The parts can fail: a trace with one gradient changed."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    sys.path[:0] = [os.path.join(REPO, "bench"), os.path.join(REPO, "tests/oracle")]
    import gpu_node as module
    from replay import Replay

    node = module.Node(module.arguments(["--build", BUILD, "--device", "cpu", "--work", str(tmp_path)]))
    recipe = node.recipe("off", node.base("tiny-sd15"), train__mixed_precision="fp16", train__total_batch_size=2,
                         train__max_train_steps=2, debug__trace_steps=2)
    node.launch(recipe, 1)
    path = str(tmp_path / "off" / "trace.safetensors")
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    # Of step 0 only "up" has a gradient: its halves change places.
    key = next(name for name in sorted(tensors) if name.startswith("step0/grad/") and tensors[name].abs().max() > 0)
    tensors[key] = tensors[key].flip(0).contiguous()
    save_file(tensors, path, metadata)
    assert "gradient of a tensor" in Replay(tmp_path / "off").replay().outside()
