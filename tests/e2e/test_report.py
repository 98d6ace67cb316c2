"""`lorashard report` as a user runs it, on a run directory as training leaves it behind."""

import json
import os
import sys

import pytest
from lorashard_runs import REPO, lorashard, make_base, make_pack, make_pictures, write_recipe
from PIL import Image, ImageStat

sys.path.insert(0, os.path.join(REPO, "tests", "oracle"))
import philox_reference as philox  # noqa: E402


@pytest.fixture
def run_dir(tmp_path):
    pack = make_pack(tmp_path / "pack", make_pictures(tmp_path / "pictures", count=6))
    run_dir = tmp_path / "pokemon"
    os.makedirs(run_dir)
    write_recipe(run_dir / "recipe.toml", tmp_path / "base", pack, run_dir, train__max_train_steps=50)
    with open(run_dir / "metrics.jsonl", "w", encoding="utf-8") as table:
        for step in range(1, 41):
            line = {"global_step": step, "loss": 1 / step, "lr": 1e-4, "grad_norm": 0.1, "skipped": step == 3}
            line |= {"images_per_second": 12.5, "wall_s": 0.5 * step, "world_size": 2}
            table.write(json.dumps(line) + "\n")
    return run_dir


def test_report_writes_a_picture_and_says_what_is_in_it(run_dir):
    done = lorashard("report", run_dir, "--json")
    summary = json.loads(done.stdout)
    assert summary == {
        "run": "pokemon", "report": str(run_dir / "report.png"), "steps": 40, "max_train_steps": 50, "skipped_steps": 1,
        "last_loss": 1 / 40, "final_loss": pytest.approx(sum(1 / k for k in range(37, 41)) / 4, abs=1e-9),
        "final_loss_is_the_mean_of_steps": 4,
        "images_per_second": 12.5, "wall_s": 20, "ranks": 2, "num_samples": 6,
    }
    with Image.open(run_dir / "report.png") as report:
        assert report.format == "PNG" and report.size[0] == 1800
        colours = {report.getpixel((x, 400))[:3] for x in range(60, 800)}
    assert len(colours) > 50, "the pictures are not in it"


@pytest.mark.parametrize("preset", ["tiny-sd15", "tiny-sdxl", None])
def test_the_picture_is_cropped_and_flipped_as_training_does_it(tmp_path, preset):
    """SDXL's is flipped before it is cropped: another part of the picture is seen. Without its base, a run counts as SD 1.x's."""
    width, side = 448, 64
    os.makedirs(tmp_path / "pictures")
    Image.linear_gradient("L").rotate(90).resize((width, side)).convert("RGB").save(tmp_path / "pictures" / "wide.png")
    (tmp_path / "pictures" / "wide.txt").write_text("from dark to bright or the other way")
    lefts = {seed: int(philox.words(seed, 0, philox.CROP, 0)[1]) * (width - side + 1) >> 32 for seed in range(200)}
    seed = next(seed for seed, left in lefts.items() if left < 60 and philox.uniform(seed, 0, philox.FLIP) < 0.5)
    pack, run = make_pack(tmp_path / "pack", tmp_path / "pictures"), tmp_path / "run"
    if preset:
        make_base(tmp_path / "base", preset)
    os.makedirs(run)
    write_recipe(run / "recipe.toml", tmp_path / "base", pack, run, seed=seed)
    (run / "metrics.jsonl").write_text('{"global_step": 1, "loss": 1, "lr": 1e-4}\n')
    said = lorashard("report", run).stderr
    assert ("as for SD 1.x" in said) == (preset is None)

    left = width - side - lefts[seed] if preset == "tiny-sdxl" else lefts[seed]
    with Image.open(tmp_path / "pictures" / "wide.png") as picture:
        expected = ImageStat.Stat(picture.crop((left, 0, left + side, side)).convert("L")).mean[0]
    with Image.open(run / "report.png") as report:
        tile = report.convert("L").crop((60, 200, 430, 570))  # the only picture of the grid, without its edge
    assert ImageStat.Stat(tile).mean[0] == pytest.approx(expected, abs=2)
    first, last = tile.getpixel((0, 100)), tile.getpixel((tile.width - 1, 100))
    with Image.open(tmp_path / "pictures" / "wide.png") as picture:
        rises = picture.convert("L").getpixel((0, 0)) < picture.convert("L").getpixel((width - 1, 0))
    assert (first > last) == rises, "it isn't flipped"


def test_report_can_write_elsewhere(run_dir, tmp_path):
    assert lorashard("report", run_dir, "--out", tmp_path / "there.png").stdout == ""
    assert os.path.getsize(tmp_path / "there.png") > 10_000
    assert not os.path.exists(run_dir / "report.png")


def test_report_names_the_broken_line(run_dir):
    with open(run_dir / "metrics.jsonl", "a", encoding="utf-8") as table:
        table.write("nonsense\n")
    assert "metrics.jsonl' line 41" in lorashard("report", run_dir, code=65).stderr
    assert not os.path.exists(run_dir / "report.png")


def test_report_on_something_else_is_wrong_use(tmp_path):
    assert "recipe.toml" in lorashard("report", tmp_path, code=2).stderr
