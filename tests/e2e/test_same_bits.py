"""The promise: the same adapter, bit for bit, on any number of ranks and through a stop and a resume."""

import os
import shutil
import signal
import struct
import subprocess
import time

import pytest

from lorashard_runs import LORASHARD, adapter_hash, lorashard, make_base, make_pack, make_pictures, metrics, write_recipe


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("same-bits")
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    make_base(folder / "base")
    return folder


def recipe(work, name, **overrides):
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name, **overrides)


@pytest.fixture(scope="module")
def undisturbed(work):
    """One process, no mpirun: what every other run must equal."""
    lorashard("train", recipe(work, "undisturbed"))
    return adapter_hash(work / "undisturbed"), [line["loss"] for line in metrics(work / "undisturbed")]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_rank_count_writes_the_same_bytes(work, undisturbed, ranks):
    lorashard("launch", recipe(work, f"ranks{ranks}"), "--ranks", ranks)
    assert adapter_hash(work / f"ranks{ranks}") == undisturbed[0]
    assert [line["loss"] for line in metrics(work / f"ranks{ranks}")] == undisturbed[1]


def test_more_ranks_than_micro_batches_write_the_same_bytes(work):
    for ranks in (1, 4):
        lorashard("launch", recipe(work, f"few{ranks}", train__train_batch_size=2, train__max_train_steps=3), "--ranks", ranks)
    assert adapter_hash(work / "few1") == adapter_hash(work / "few4")


@pytest.mark.parametrize("before, after", [(1, 3), (2, 1), (3, 4), (4, 2)])
def test_killed_and_resumed_on_other_ranks_writes_the_same_bytes(work, undisturbed, before, after):
    name = f"killed{before}to{after}"
    path = recipe(work, name)
    process = subprocess.Popen([LORASHARD, "launch", str(path), "--ranks", str(before), "--max-restarts", "0"], stderr=subprocess.DEVNULL,
                               start_new_session=True)
    while not (work / name / "checkpoint-3").exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.005)
    subprocess.run(["pkill", "-9", "-f", f"train {path}"], check=False)
    process.wait()
    lorashard("launch", path, "--ranks", after)
    assert adapter_hash(work / name) == undisturbed[0]
    lines = metrics(work / name)
    assert [line["global_step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in lines] == undisturbed[1]


def test_stopped_on_request_resumes_to_the_same_bytes(work):
    lorashard("train", recipe(work, "long", train__max_train_steps=40, checkpoint__checkpointing_steps=1000))
    path = recipe(work, "stopped", train__max_train_steps=40, checkpoint__checkpointing_steps=1000)
    process = subprocess.Popen([LORASHARD, "launch", str(path), "--ranks", "2"], stderr=subprocess.PIPE, text=True)
    while not (work / "stopped" / "metrics.jsonl").exists() or not metrics(work / "stopped"):
        assert process.poll() is None, "the run ended before its first step"
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate()[1]
    assert process.returncode == 75, errors
    assert errors.count("stopped on request") == 1, errors
    done = len(metrics(work / "stopped"))
    assert 0 < done < 40 and (work / "stopped" / f"checkpoint-{done}").exists()
    lorashard("launch", path, "--ranks", "3")
    assert adapter_hash(work / "stopped") == adapter_hash(work / "long")


def test_extending_a_constant_schedule_equals_training_longer_at_once(work):
    lorashard("train", recipe(work, "at-once", train__max_train_steps=8))
    path = recipe(work, "extended", train__max_train_steps=5)
    lorashard("train", path)
    lorashard("train", path, "--set", "train.max_train_steps=8")
    assert adapter_hash(work / "extended") == adapter_hash(work / "at-once")


def test_threads_workers_and_checkpoints_change_no_bit(work, undisturbed):
    lorashard("train", recipe(work, "free", data__dataloader_num_workers=3, checkpoint__checkpointing_steps=2, debug__trace_steps=2))
    assert adapter_hash(work / "free") == undisturbed[0]


def test_a_plain_picture_folder_is_packed_on_first_use(work, undisturbed):
    path = recipe(work, "plain", data__train_data_dir=str(work / "pictures"))
    lorashard("launch", path, "--ranks", 2)
    assert adapter_hash(work / "plain") == undisturbed[0]
    # Going on uses that pack; another folder under the same output_dir is not mistaken for it.
    assert "at the first start" in lorashard("train", path).stderr
    other = make_pictures(work / "other-pictures", seed=9)
    said = lorashard("train", path, "--set", f"data.train_data_dir='{other}'", code=2).stderr
    assert "other-pictures" in said and "hint:" in said


def test_without_deterministic_the_ranks_still_agree_closely(work, undisturbed):
    from safetensors.torch import load_file

    lorashard("launch", recipe(work, "fast", train__deterministic=False), "--ranks", 2)
    fast = load_file(os.path.join(work / "fast", "pytorch_lora_weights.safetensors"))
    exact = load_file(os.path.join(work / "undisturbed", "pytorch_lora_weights.safetensors"))
    assert fast.keys() == exact.keys()
    # Six Adam steps at 1e-3 may turn a near-zero gradient's sign: at most a few steps' length apart.
    assert all((fast[key] - exact[key]).abs().max() < 4e-3 for key in exact)
    assert metrics(work / "fast")[0]["loss"] == pytest.approx(undisturbed[1][0], rel=1e-5)


def test_bf16_writes_the_same_bytes_on_any_rank_count(work):
    for ranks in (1, 3):
        lorashard("launch", recipe(work, f"bf16-{ranks}", train__mixed_precision="bf16"), "--ranks", ranks)
    assert adapter_hash(work / "bf16-1") == adapter_hash(work / "bf16-3")


def test_sdxl_on_any_ranks_and_through_a_resume_writes_the_same_bytes(work):
    make_base(work / "sdxl", "tiny-sdxl")
    own = {"model__pretrained_model_name_or_path": str(work / "sdxl"), "train__max_train_steps": 4,
           "train__mixed_precision": "bf16", "checkpoint__checkpointing_steps": 2}
    lorashard("train", recipe(work, "sdxl-undisturbed", **own))
    expected = adapter_hash(work / "sdxl-undisturbed")
    for ranks in (2, 4):
        lorashard("launch", recipe(work, f"sdxl-ranks{ranks}", **own), "--ranks", ranks)
        assert adapter_hash(work / f"sdxl-ranks{ranks}") == expected
    path = recipe(work, "sdxl-resumed", **own)
    lorashard("launch", path, "--ranks", 3, "--set", "train.max_train_steps=2")
    lorashard("launch", path, "--ranks", 1)
    assert adapter_hash(work / "sdxl-resumed") == expected


@pytest.mark.skipif("avx512f" not in open("/proc/cpuinfo").read(), reason="this CPU has no AVX-512: AVX2 is what the others ran with")
def test_forced_to_avx2_the_rank_counts_agree_among_themselves(work):
    avx2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    for ranks in (1, 2):
        lorashard("launch", recipe(work, f"avx2-{ranks}"), "--ranks", ranks, env={**os.environ, **avx2})
    assert adapter_hash(work / "avx2-1") == adapter_hash(work / "avx2-2")


def test_where_in_its_file_a_weight_lies_changes_no_bit(work, undisturbed):
    """A safetensors header may end in blanks: the same weights, elsewhere in their files and so in memory."""
    for begin in (0, 8, 24):  # modulo 64
        base = work / f"base-at-{begin}"
        shutil.copytree(work / "base", base)
        for path in base.rglob("*.safetensors"):
            content = path.read_bytes()
            data = 8 + struct.unpack("<Q", content[:8])[0]
            header = content[8:data].rstrip(b" ")
            header += b" " * ((begin - 8 - len(header)) % 64)
            path.write_bytes(struct.pack("<Q", len(header)) + header + content[data:])
        run = work / f"on-base-at-{begin}"
        lorashard("train", write_recipe(work / f"{run.name}.toml", base, work / "pack", run))
        assert adapter_hash(run) == undisturbed[0], f"weights begin at {begin} modulo 64"
