"""Memory stays flat however large the pack is: what training on a big one takes more than on a small one is a fraction of its size."""

import os
import subprocess

from PIL import Image

from lorashard_runs import LORASHARD, make_base, make_pack, make_pictures, write_recipe

NUM_PICTURES = 200 if os.environ.get("LORASHARD_LONG_TESTS") else 50


def peak_resident_mib(*command):
    process = subprocess.Popen([LORASHARD, *map(str, command)], stderr=subprocess.PIPE)
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, said
    return usage.ru_maxrss / 1024


def test_training_takes_no_more_memory_on_a_larger_pack(tmp_path):
    big = tmp_path / "big-pictures"
    make_pictures(big, count=NUM_PICTURES)
    for i in range(NUM_PICTURES):  # noise that no codec makes smaller: 3.6 MB each
        Image.frombytes("RGB", (1200, 1000), os.urandom(3_600_000)).save(big / f"{i:03d}.png", compress_level=0)
    size_mib = sum(path.stat().st_size for path in big.iterdir()) / 2**20
    make_base(tmp_path / "base")
    make_pack(tmp_path / "small", make_pictures(tmp_path / "small-pictures", count=NUM_PICTURES))

    packing = {count: peak_resident_mib("pack", big, "--out", tmp_path / name, "--max-samples", count, "--shard-bytes", 16 << 20,
                                        "--threads", 1) for name, count in (("part", NUM_PICTURES // 4), ("big", NUM_PICTURES))}
    training = {}
    for name in ("small", "big"):
        recipe = write_recipe(tmp_path / f"{name}.toml", tmp_path / "base", tmp_path / name, tmp_path / f"{name}-out",
                              train__total_batch_size=1, train__max_train_steps=NUM_PICTURES, checkpoint__checkpointing_steps=1000)
        training[name] = peak_resident_mib("train", recipe)
    print(f"{NUM_PICTURES} pictures, {size_mib:.0f} MiB: packing {packing[NUM_PICTURES]:.0f} MiB, a quarter of them "
          f"{packing[NUM_PICTURES // 4]:.0f} MiB; training {training['big']:.0f} MiB, "
          f"on a small pack {training['small']:.0f} MiB")
    assert packing[NUM_PICTURES] - packing[NUM_PICTURES // 4] < 0.25 * size_mib
    # The pictures themselves, encoded and decoded, that loader and prefetch hold at once.
    assert training["big"] - training["small"] < 0.4 * size_mib
