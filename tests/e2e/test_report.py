"""`lorashard report` as a user runs it, on a run directory as training leaves it behind."""

import json
import os

import pytest
from lorashard_runs import lorashard, make_pack, make_pictures, write_recipe
from PIL import Image


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
