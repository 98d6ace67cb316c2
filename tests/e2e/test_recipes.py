"""The recipes that ship, on small bases and pictures: their first steps run."""

import os

import pytest

from lorashard_runs import REPO, lorashard, make_base, make_pack, make_pictures, metrics

# recipe: (base, what makes it short, the steps it then has)
RECIPES = {
    "sd15_pokemon": ("tiny-sd15", ["train.max_train_steps=2"], 2),
    "sdxl_text_to_image": ("tiny-sdxl", ["data.max_train_samples=2"], 4),  # two epochs
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    return make_pack(folder / "pack", make_pictures(folder / "pictures"))


@pytest.mark.parametrize("name", RECIPES)
def test_its_first_steps_run(tmp_path, pack, name):
    preset, shorter, steps = RECIPES[name]
    base = make_base(tmp_path / "base", preset)
    settings = [f"output_dir='{tmp_path / 'run'}'", f"model.pretrained_model_name_or_path='{base}'",
                f"data.train_data_dir='{pack}'", "data.resolution=64", "train.mixed_precision='bf16'", *shorter]
    lorashard("train", os.path.join(REPO, "recipes", f"{name}.toml"), *(word for s in settings for word in ("--set", s)))
    assert [line["global_step"] for line in metrics(tmp_path / "run")] == list(range(1, steps + 1))
    assert (tmp_path / "run" / "pytorch_lora_weights.safetensors").exists()
