"""mixed_precision = "fp16" with its dynamic loss scale, on CPUs: the rule of the scale, and the same bits whatever shares the run."""

import pytest

from lorashard_runs import adapter_hash, lorashard, make_base, make_pack, make_pictures, metrics, write_recipe

# So large that the first gradients overflow fp16, and a few halvings later don't.
TOO_LARGE = 2**25


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp16")
    make_base(folder / "base")
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    return folder


def recipe(work, name, **overrides):
    values = {"train__mixed_precision": "fp16", "train__total_batch_size": 3, **overrides}
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name, **values)


def scales(run):
    return [(line["loss_scale"], line["skipped"]) for line in metrics(run)]


def test_any_rank_count_writes_the_same_bytes(work):
    for ranks in (1, 2, 3):
        lorashard("launch", recipe(work, f"ranks{ranks}"), "--ranks", ranks)
        assert scales(work / f"ranks{ranks}") == [(65536, False)] * 6
    assert len({adapter_hash(work / f"ranks{ranks}") for ranks in (1, 2, 3)}) == 1


def test_the_losses_are_those_of_fp32_up_to_rounding(work):
    lorashard("train", recipe(work, "half"))
    lorashard("train", recipe(work, "single", train__mixed_precision="no"))
    for half, single in zip(metrics(work / "half"), metrics(work / "single")):
        assert half["loss"] == pytest.approx(single["loss"], rel=5e-3)
        assert half["grad_norm"] == pytest.approx(single["grad_norm"], rel=5e-2)
        assert single["loss_scale"] == 1


def test_overflow_skips_on_all_ranks_and_halves_once_a_step_and_a_resume_keeps_it(work):
    changes = {"train__initial_loss_scale": TOO_LARGE, "train__loss_scale_growth_interval": 3, "train__max_train_steps": 14,
               "checkpoint__checkpointing_steps": 100}
    lorashard("launch", recipe(work, "at-once", **changes), "--ranks", 2)
    seen = scales(work / "at-once")
    skipped = [was_skipped for _, was_skipped in seen]
    overflows = skipped.index(False)
    assert 2 <= overflows < 8, f"{seen}: the test wants a scale that overflows a few times"
    expected, clean = TOO_LARGE, 0
    for scale, was_skipped in seen:
        assert scale == expected, seen
        clean = 0 if was_skipped else clean + 1
        expected = expected / 2 if was_skipped else expected * 2 if clean == 3 else expected
        clean %= 3
    # Stopped in the middle of the halvings, then in the middle of a count, and on other ranks.
    path = recipe(work, "in-parts", **changes)
    for steps, ranks in ((overflows - 1, 1), (overflows + 2, 3), (14, 1)):
        lorashard("launch", path, "--ranks", ranks, "--set", f"train.max_train_steps={steps}")
    assert scales(work / "in-parts") == seen
    assert adapter_hash(work / "in-parts") == adapter_hash(work / "at-once")


def test_a_scale_that_never_fits_ends_the_run(work):
    said = lorashard("train", recipe(work, "never", train__initial_loss_scale=2**40, train__max_train_steps=20), code=77).stderr
    assert "8 steps in a row" in said and "hint:" in said
