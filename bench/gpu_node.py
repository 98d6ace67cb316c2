#!/usr/bin/env python3
"""Everything that lorashard claims of GPUs, shown on the node it is started on:

    python3 bench/gpu_node.py --bundle DIR [--script DIFFUSERS/examples/text_to_image/train_text_to_image_lora.py]

DIR is what `cmake --install build/cuda --prefix DIR` made (or --build build/cuda for a build on this machine). Needed of Python: torch with
NVIDIA's wheels, and requirements-test.txt for the parts `replay` and `speed`. Parts, each a line at the end:

    doctor   the CUDA side loads and sees a device
    tests    tests/gpu on 1 rank and on 2 (which share the GPU where there is only one)
    replay   steps of 2 ranks recomputed by diffusers, peft and torch: fp32, bf16, fp16
    ranks    1 rank and 2 write the same bytes in deterministic mode: fp32, bf16, fp16
    pictures `lorashard generate` shows there what it shows on the CPU: fp32 within 2 grey levels of 255
    speed    images a second and peak memory on a full-size random SD 1.5 at 512, beside the diffusers script's own

A part whose prerequisites are missing names them and counts as not run. Exit code: 0 when every part asked for succeeded, 1 when one failed,
3 when one could not run.
With --device cpu the same parts run without a GPU, on a tiny base (so this script itself is tested).
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(REPO, "tests/e2e"), os.path.join(REPO, "tests/oracle"), os.path.join(REPO, "bench")]
PARTS = ["doctor", "tests", "replay", "ranks", "pictures", "speed"]
PRECISIONS = ["no", "bf16", "fp16"]
# Runs the script as __main__ and says what torch took of the GPU at most.
WITH_PEAK = """
import atexit, runpy, sys, torch
def say():
    if torch.cuda.is_available(): print("peak_memory_bytes", torch.cuda.max_memory_allocated(), flush=True)
atexit.register(say)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class NotRun(Exception):
    """A prerequisite is missing."""


class Failed(Exception):
    """A part ran and did not show what it should."""


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--bundle", help="folder that cmake --install made")
    where.add_argument("--build", help="build folder with lorashard, liblorashard_cuda.so and gpu_tests")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--script", help="train_text_to_image_lora.py of a diffusers checkout, for the part speed")
    parser.add_argument("--preset", help="base of the part speed [sd15; with --device cpu: tiny-sd15]")
    parser.add_argument("--resolution", type=int, help="of the part speed [512; with --device cpu: 64]")
    parser.add_argument("--train-batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60, help="of the part speed; the first ten are left out")
    parser.add_argument("--work", help="folder for bases and runs [a temporary one, removed at the end]")
    args = parser.parse_args(argv)
    on_cpu = args.device == "cpu"
    args.preset = args.preset or ("tiny-sd15" if on_cpu else "sd15")
    args.resolution = args.resolution or (64 if on_cpu else 512)
    if args.bundle:
        args.lorashard, args.mpirun = (os.path.join(args.bundle, "bin", name) for name in ("lorashard", "lorashard-mpirun"))
        args.gpu_tests = os.path.join(args.bundle, "libexec/lorashard/gpu_tests")
    else:
        args.lorashard, args.gpu_tests = (os.path.join(args.build, name) for name in ("lorashard", "gpu_tests"))
        args.mpirun = "mpirun"
    if not os.path.exists(args.lorashard):
        parser.error(f"there is no '{args.lorashard}'")
    return args


def run(command, code=0, **environment):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode != code:
        raise Failed(f"'{' '.join(map(str, command))}' ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done


def need(*modules):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise NotRun(f"Python lacks {', '.join(missing)}: pip install -r requirements-test.txt")


class Node:
    def __init__(self, args):
        self.args = args
        self.work = args.work or tempfile.mkdtemp(prefix="lorashard-gpu-node-")
        self._made = {}

    def close(self):
        if not self.args.work:
            shutil.rmtree(self.work, ignore_errors=True)

    def made(self, name, make):
        """The path `name`, made at the first asking."""
        path = os.path.join(self.work, name)
        if name not in self._made and not os.path.exists(path):
            make(path)
        self._made[name] = path
        return path

    def devices(self):
        """What doctor says of CUDA; NotRun without a device."""
        report = json.loads(run([self.args.lorashard, "doctor", "--json"]).stdout)
        line = next(check for check in report["checks"] if check["check"] == "CUDA")
        if self.args.device == "cuda" and (line["status"] != "OK" or "compute" not in line["message"]):
            raise NotRun(line["message"])
        return line["message"]

    def base(self, preset):
        return self.made(f"base-{preset}", lambda path: run([self.args.lorashard, "init-base", "--preset", preset, path]))

    def pictures(self):
        need("PIL")
        from lorashard_runs import make_pictures
        return self.made("pictures", lambda path: make_pictures(path, count=24))

    def pack(self):
        pictures = self.pictures()
        return self.made("pack", lambda path: run([self.args.lorashard, "pack", pictures, "--out", path]))

    def recipe(self, name, base, **overrides):
        from lorashard_runs import write_recipe
        return write_recipe(os.path.join(self.work, name + ".toml"), base, self.pack(), os.path.join(self.work, name),
                            distributed__device=self.args.device, **overrides)

    def launch(self, recipe, ranks):
        run([self.args.lorashard, "launch", recipe, "--ranks", ranks, "--max-restarts", 0], LORASHARD_SHARE_GPUS="1")


def doctor(node):
    return node.devices()


def tests(node):
    if node.args.device == "cpu":
        raise NotRun("they need a GPU")
    node.devices()
    if not os.path.exists(node.args.gpu_tests):
        raise NotRun(f"there is no '{node.args.gpu_tests}': build the target gpu_tests, then install")
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    for ranks in (1, 2):
        said = run([node.args.mpirun, *root, "--oversubscribe", "--bind-to", "none", "-n", ranks, node.args.gpu_tests]).stdout
        if "GPU tests not run: " in said:
            raise NotRun(said.strip())
    return "passed on 1 rank and on 2"


def replay(node):
    need("torch", "diffusers", "transformers", "peft", "safetensors")
    node.devices()
    from replay import Replay
    base, worst = node.base("tiny-sd15"), []
    for precision in PRECISIONS:
        recipe = node.recipe(f"replay-{precision}", base, train__mixed_precision=precision, train__train_batch_size=2,
                             train__total_batch_size=8, train__max_train_steps=2, debug__trace_steps=2)
        node.launch(recipe, 2)
        errors = Replay(os.path.join(node.work, f"replay-{precision}")).replay()
        if errors.outside():
            raise Failed(f"{precision}:\n{errors.table()}")
        worst.append(f"{'fp32' if precision == 'no' else precision} {errors.worst['gradient'][0]:.1e}")
    return "gradients within their limits; relative errors: " + ", ".join(worst)


def ranks(node):
    need("PIL")
    node.devices()
    base, hashes = node.base("tiny-sd15"), {}
    for precision in PRECISIONS:
        for count in (1, 2):
            name = f"ranks{count}-{precision}"
            node.launch(node.recipe(name, base, train__mixed_precision=precision, train__max_train_steps=4), count)
            with open(os.path.join(node.work, name, "pytorch_lora_weights.safetensors"), "rb") as file:
                hashes[precision, count] = hashlib.sha256(file.read()).hexdigest()
        if hashes[precision, 1] != hashes[precision, 2]:
            raise Failed(f"mixed_precision = \"{precision}\": 1 rank and 2 wrote other bytes")
    return "1 rank and 2 write the same bytes in fp32, bf16 and fp16"


def pictures(node):
    need("numpy", "PIL")
    import numpy
    from PIL import Image
    node.devices()
    shown = []
    for device in ("cpu", node.args.device):
        out = os.path.join(node.work, f"picture-{len(shown)}.png")
        run([node.args.lorashard, "generate", "--base", node.base("tiny-sd15"), "--prompt", "a red house", "--num-inference-steps", 8,
             "--seed", 3, "--device", device, "--out", out])
        shown.append(numpy.asarray(Image.open(out).convert("RGB")).astype(int))
    apart = int(abs(shown[0] - shown[1]).max())
    if apart > 2 or shown[0].std() < 5:
        raise Failed(f"the pictures are {apart} grey levels apart")
    return f"the CPU's picture and the device's are at most {apart} grey levels apart"


def lorashard_speed(node, precision, deterministic):
    args = node.args
    name = f"speed-{precision}-{deterministic}"
    recipe = node.recipe(name, node.base(args.preset), train__mixed_precision=precision, train__deterministic=deterministic,
                         train__train_batch_size=args.train_batch_size, train__total_batch_size=args.train_batch_size,
                         train__max_train_steps=args.steps, data__resolution=args.resolution, data__center_crop=True,
                         checkpoint__checkpointing_steps=10**6, optimizer__learning_rate=1e-4)
    run([args.lorashard, "train", recipe])
    with open(os.path.join(node.work, name, "metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    times = [line["wall_s"] for line in lines]
    return rate(times, args), lines[-1]["peak_device_memory_bytes"]


def rate(times, args):
    left_out = min(10, len(times) // 2)
    return args.train_batch_size / statistics.median(b - a for a, b in zip(times[left_out:], times[left_out + 1:]))


def script_speed(node, precision):
    from against_diffusers import script_command, step_times
    args, out = node.args, os.path.join(node.work, f"script-{precision}")
    options = argparse.Namespace(script=args.script, resolution=args.resolution, train_batch_size=args.train_batch_size,
                                 steps=args.steps, mixed_precision=precision)
    command = script_command(options, node.base(args.preset), node.pictures(), out)
    said = run([command[0], "-c", WITH_PEAK, *command[1:]], HF_HUB_OFFLINE="1", WANDB_MODE="disabled").stdout
    peaks = [int(line.split()[1]) for line in said.splitlines() if line.startswith("peak_memory_bytes")]
    return rate(step_times(out, "train_loss"), args), peaks[-1] if peaks else 0


def speed(node):
    node.devices()
    figures = []
    for precision in PRECISIONS:
        label = "fp32" if precision == "no" else precision
        for deterministic in (True, False):
            images, peak = lorashard_speed(node, precision, deterministic)
            figures.append(f"{label} lorashard{'' if deterministic else ', deterministic = false'}: {images:.2f} images/s, "
                           f"{peak / 2**30:.2f} GiB")
        if node.args.script and (node.args.device == "cuda" or precision != "fp16"):
            need("diffusers", "datasets", "accelerate", "tensorboard")
            images, peak = script_speed(node, precision)
            figures.append(f"{label} diffusers script: {images:.2f} images/s, {peak / 2**30:.2f} GiB")
    if not node.args.script:
        figures.append("the diffusers script: not run, no --script was given")
    return f"{node.args.preset} at {node.args.resolution}, batch {node.args.train_batch_size}\n             " + "\n             ".join(figures)


def main(argv=None):
    args = arguments(argv)
    node, code = Node(args), 0
    try:
        for part in args.parts:
            try:
                said, status = globals()[part](node), "ok"
            except NotRun as reason:
                said, status, code = reason, "not run", code or 3
            except Failed as reason:
                said, status, code = reason, "FAILED", 1
            print(f"{status:8} {part}: {said}", flush=True)
    finally:
        node.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
