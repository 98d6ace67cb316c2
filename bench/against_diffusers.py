#!/usr/bin/env python3
"""lorashard against diffusers' train_text_to_image_lora.py: same base, pictures, cores, minute.

    .venv/bin/python bench/against_diffusers.py --script DIFFUSERS/examples/text_to_image/train_text_to_image_lora.py

The script is part of a diffusers checkout (not of its wheel): github.com/huggingface/diffusers, examples/text_to_image.
Both programs run whole, in turn, pinned to the same cores; both write a TensorBoard event at each step, and the times
are those events' own. Printed: steps a second (median over the steps of all rounds, the first --left-out of each left out),
the time from the start of the program to its first step (a first start with caches fills them before), and its peak
resident memory. The full size, with caches and gradient checkpointing beside it, in an hour or two of CPU:

    ... --preset sd15 --resolution 256 --train-batch-size 1 --pictures 8 --steps 8 --left-out 2 --rounds 1
"""

import argparse
import glob
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STAMPS = "/usr/share/tuxpaint/stamps"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", required=True, help="train_text_to_image_lora.py of a diffusers checkout")
    parser.add_argument("--lorashard", default=os.path.join(REPO, "build/release/lorashard"))
    parser.add_argument("--base", help="diffusers folder; default: lorashard init-base --preset PRESET")
    parser.add_argument("--preset", default="tiny-sd15", help="random base to make: tiny-sd15, sd15, ...")
    parser.add_argument("--left-out", type=int, default=10, help="first steps of each run that don't count")
    parser.add_argument("--only", nargs="*", default=[], help="contenders whose name holds one of these words, and the script")
    parser.add_argument("--pictures", type=int, default=128, help="captioned pictures taken from tuxpaint's stamps")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--train-batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", default="", help="such as 0,1; default: all")
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16"])
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    return parser.parse_args()


def picture_folder(out, count):
    """Captioned stamps as RGB pictures over white, in the layout both programs read: metadata.jsonl."""
    from PIL import Image

    os.makedirs(out)
    rows = []
    for png in sorted(glob.glob(STAMPS + "/**/*.png", recursive=True)):
        caption = os.path.splitext(png)[0] + ".txt"
        if not os.path.exists(caption) or len(rows) == count:
            continue
        name = f"{len(rows):05d}.png"
        picture = Image.open(png).convert("RGBA")
        Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB").save(f"{out}/{name}")
        rows.append({"file_name": name, "text": open(caption, encoding="utf-8").readline().strip()})
    with open(out + "/metadata.jsonl", "w", encoding="utf-8") as table:
        table.writelines(json.dumps(row) + "\n" for row in rows)


def run(command, cores, threads):
    """Runs `command` on `cores`; returns when it started (epoch seconds) and its peak resident memory in MiB."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    start = time.time()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: os.sched_setaffinity(0, cores))
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"'{' '.join(command)}' failed:\n{errors[-3000:]}")
    return start, usage.ru_maxrss / 1024


def step_times(folder, tag):
    """Wall times of the events under `tag`, in whichever event file has them (the script writes its settings to another)."""
    for events in glob.glob(folder + "/**/events.out.tfevents.*", recursive=True):
        accumulator = EventAccumulator(events, size_guidance={"scalars": 0})
        accumulator.Reload()
        if tag in accumulator.Tags()["scalars"]:
            return [event.wall_time for event in accumulator.Scalars(tag)]
    sys.exit(f"no TensorBoard events '{tag}' in '{folder}'")


def script_command(args, base, pictures, out):
    return [sys.executable, args.script, f"--pretrained_model_name_or_path={base}", f"--train_data_dir={pictures}",
            f"--resolution={args.resolution}", f"--train_batch_size={args.train_batch_size}", "--center_crop",
            "--random_flip", f"--max_train_steps={args.steps}", "--learning_rate=1e-4", "--lr_scheduler=constant",
            "--lr_warmup_steps=0", "--seed=1337", "--rank=4", "--image_column=image", "--caption_column=text",
            f"--mixed_precision={args.mixed_precision}", "--checkpointing_steps=1000000", f"--output_dir={out}",
            "--report_to=tensorboard"]


def lorashard_command(args, base, pack, out, threads, deterministic, caches, gradient_checkpointing):
    recipe = out + ".toml"
    with open(recipe, "w", encoding="utf-8") as file:
        file.write(f"""task = "text_to_image"
output_dir = "{out}"
seed = 1337
[model]
pretrained_model_name_or_path = "{base}"
[data]
train_data_dir = "{pack}"
resolution = {args.resolution}
center_crop = true
random_flip = true
dataloader_num_workers = 1
cache_latents = {str(caches).lower()}
cache_text_embeddings = {str(caches).lower()}
[train]
gradient_checkpointing = {str(gradient_checkpointing).lower()}
train_batch_size = {args.train_batch_size}
total_batch_size = {args.train_batch_size}
max_train_steps = {args.steps}
mixed_precision = "{args.mixed_precision}"
deterministic = {str(deterministic).lower()}
[distributed]
threads_per_rank = {threads}
[checkpoint]
checkpointing_steps = 1000000
""")
    return [args.lorashard, "train", recipe]


def main():
    args = arguments()
    cores = {int(core) for core in args.cores.split(",")} if args.cores else os.sched_getaffinity(0)
    work = tempfile.mkdtemp(prefix="lorashard-bench-")
    base, pictures, pack = args.base or work + "/base", work + "/pictures", work + "/pack"
    if not args.base:
        vocabulary = os.path.join(REPO, ".venv/share/lorashard/bpe_simple_vocab_16e6.txt.gz")
        subprocess.run([args.lorashard, "init-base", "--preset", args.preset, "--vocabulary", vocabulary, base],
                       check=True, capture_output=True)
    picture_folder(pictures, args.pictures)
    subprocess.run([args.lorashard, "pack", pictures, "--out", pack], check=True, capture_output=True)

    def lorashard(deterministic=True, caches=False, gradient_checkpointing=False):
        return lambda out: lorashard_command(args, base, pack, out, len(cores), deterministic, caches, gradient_checkpointing)

    contenders = {
        "diffusers script": (lambda out: script_command(args, base, pictures, out), "train_loss"),
        "lorashard": (lorashard(), "train/loss"),
        "lorashard, deterministic = false": (lorashard(deterministic=False), "train/loss"),
        "lorashard, caches": (lorashard(caches=True), "train/loss"),
        "lorashard, caches, gradient checkpointing": (lorashard(caches=True, gradient_checkpointing=True), "train/loss"),
    }
    if args.only:
        contenders = {name: contender for name, contender in contenders.items()
                      if name == "diffusers script" or any(word in name for word in args.only)}
    steps, starts, memory = ({name: [] for name in contenders} for _ in range(3))
    for round_number in range(args.rounds):
        for name, (command, tag) in contenders.items():
            out = f"{work}/out-{round_number}-{list(contenders).index(name)}"
            start, peak = run(command(out), cores, len(cores))
            times = step_times(out, tag)
            steps[name] += [b - a for a, b in zip(times[args.left_out:], times[args.left_out + 1:])]
            starts[name].append(times[0] - start)
            memory[name].append(peak)
    shutil.rmtree(work)

    figures = {name: {"step_ms": 1e3 * statistics.median(steps[name]), "start_to_first_step_s": statistics.median(starts[name]),
                      "peak_resident_mib": statistics.median(memory[name])} for name in contenders}
    peer = figures["diffusers script"]
    print(f"{args.resolution}x{args.resolution}, batch {args.train_batch_size}, {len(cores)} cores, "
          f"{args.rounds} rounds of {args.steps} steps, mixed_precision {args.mixed_precision}", file=sys.stderr)
    for name, f in figures.items():
        f["steps_per_second_ratio"] = peer["step_ms"] / f["step_ms"]
        f["start_ratio"] = peer["start_to_first_step_s"] / f["start_to_first_step_s"]
        print(f"{name:42s} {f['step_ms']:8.1f} ms a step ({f['steps_per_second_ratio']:.2f}x)   first step after "
              f"{f['start_to_first_step_s']:6.2f} s ({f['start_ratio']:.1f}x sooner)   {f['peak_resident_mib']:7.0f} MiB",
              file=sys.stderr)
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
