"""What the end-to-end tests share: small pictures, a small base, and the program itself as a user runs it."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time

from PIL import Image

LORASHARD = os.environ.get("LORASHARD", "build/dev/lorashard")
REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VOCABULARY = os.path.join(REPO, ".venv/share/lorashard/bpe_simple_vocab_16e6.txt.gz")


def lorashard(*arguments, code=0, timeout=900, **kwargs):
    """Runs the program; fails unless it ends with exit code `code`. Returns the finished process."""
    done = subprocess.run([LORASHARD, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, **kwargs)
    assert done.returncode == code, f"exit code {done.returncode}, expected {code}\n{done.stderr[-4000:]}"
    return done


def make_pictures(folder, count=12, seed=1):
    """Captioned pictures of several sizes with something to learn in them: one colour a caption, and noise."""
    os.makedirs(folder)
    rng = random.Random(seed)
    colours = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220), "yellow": (230, 220, 60)}
    with open(os.path.join(folder, "metadata.jsonl"), "w", encoding="utf-8") as table:
        for i in range(count):
            name, colour = rng.choice(sorted(colours.items()))
            size = (rng.randint(64, 110), rng.randint(64, 110))
            picture = Image.new("RGB", size, colour)
            for _ in range(400):
                picture.putpixel((rng.randrange(size[0]), rng.randrange(size[1])), tuple(rng.randrange(256) for _ in range(3)))
            picture.save(os.path.join(folder, f"{i:03d}.png"))
            table.write(json.dumps({"file_name": f"{i:03d}.png", "text": f"a picture that is {name}, number {i}"}) + "\n")
    return folder


def make_base(folder, preset="tiny-sd15", seed=0):
    lorashard("init-base", "--preset", preset, "--seed", seed, "--vocabulary", VOCABULARY, folder)
    return folder


def make_playground(folder):
    """A tiny SDXL as Playground v2.5 differs from it: EDM's formulation, latents made standard."""
    make_base(folder, "tiny-sdxl")
    scheduler = {"_class_name": "EDMEulerScheduler", "num_train_timesteps": 1000, "prediction_type": "epsilon", "rho": 7.0,
                 "sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002, "sigma_schedule": "karras", "final_sigmas_type": "zero"}
    vae = {"latents_mean": [-0.2, 0.3, -0.1, 0.4], "latents_std": [0.5, 0.8, 1.1, 0.7], "scaling_factor": 0.5}
    for name, change in (("scheduler/scheduler_config.json", lambda _: scheduler),
                         ("vae/config.json", lambda config: config | vae),
                         ("model_index.json", lambda index: index | {"scheduler": ["diffusers", "EDMEulerScheduler"]})):
        path = os.path.join(folder, name)
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(change(config), file)
    return folder


def make_pack(folder, pictures):
    lorashard("pack", pictures, "--out", folder)
    return folder


def as_toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def write_recipe(path, base, data, output_dir, **overrides):
    """A small recipe; overrides are "table__key": value, and None leaves the key out."""
    values = {
        "task": "text_to_image", "output_dir": str(output_dir), "seed": 7,
        "model__pretrained_model_name_or_path": str(base), "data__train_data_dir": str(data), "data__resolution": 64,
        "data__random_flip": True, "data__dataloader_num_workers": 1, "train__train_batch_size": 1,
        "train__total_batch_size": 6, "train__max_train_steps": 6, "optimizer__learning_rate": 1e-3,
        "checkpoint__checkpointing_steps": 3,
    }
    values.update(overrides)
    values = {key: value for key, value in values.items() if value is not None}
    tables = {}
    for key, value in values.items():
        if value is None:  # an override that takes a key away
            continue
        table, _, name = key.rpartition("__")
        tables.setdefault(table, []).append(f"{name} = {as_toml(value)}")
    lines = tables.pop("", [])
    for table, keys in tables.items():
        lines += [f"[{table}]", *keys]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return path


STAMPS = "/usr/share/tuxpaint/stamps/animals"  # Debian's tuxpaint-stamps-default


def make_folder_of_stamps(folder, subject, count):
    """A plain folder with the first `count` pictures of a folder of Tux Paint's animals: no captions, as DreamBooth's are."""
    os.makedirs(folder)
    names = sorted(name for name in os.listdir(os.path.join(STAMPS, subject)) if name.endswith(".png"))[:count]
    assert len(names) == count, f"{subject} has only {len(names)} pictures"
    for name in names:
        shutil.copy(os.path.join(STAMPS, subject, name), folder)
    return folder


def write_dreambooth_recipe(path, base, instances, output_dir, **overrides):
    values = {"task": "dreambooth", "data__train_data_dir": None, "dreambooth__instance_data_dir": str(instances),
              "dreambooth__instance_prompt": "a photo of sks duck"}
    return write_recipe(path, base, None, output_dir, **{**values, **overrides})


def kill_ranks(recipe):
    """SIGKILL to every rank that trains `recipe`. Returns once they are gone."""
    killed = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if words[1:3] == [b"train", os.fsencode(recipe)]:
                os.kill(int(pid), signal.SIGKILL)
                killed.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            pass  # it ended meanwhile
    wait_until_gone(killed)


def wait_until_gone(pids):
    """A killed process that waits for a disk lives on until that has answered."""
    def lives(pid):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                return file.read().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    deadline = time.monotonic() + 120
    while any(map(lives, pids)):
        assert time.monotonic() < deadline, pids
        time.sleep(0.002)


def adapter_hash(output_dir):
    with open(os.path.join(output_dir, "pytorch_lora_weights.safetensors"), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def metrics(output_dir):
    with open(os.path.join(output_dir, "metrics.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]
