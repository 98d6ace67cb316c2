"""The relocatable bundle on a machine that has PyTorch and nothing else: what `cmake --install` left out would be missing there."""

import glob
import hashlib
import json
import os
import shutil
import subprocess

import pytest

import clean_node
from clean_node import CleanNode
from lorashard_runs import REPO, make_pictures, write_recipe

BUILD = os.environ.get("LORASHARD_BUILD_DIR", os.path.join(REPO, "build/dev"))
HAS_CUDA = os.path.exists(os.path.join(BUILD, "liblorashard_cuda.so"))
(SITE_PACKAGES,) = glob.glob(os.path.join(REPO, ".venv/lib/python3*/site-packages"))
PROGRAM = "/opt/lorashard/bin/lorashard"

pytestmark = [pytest.mark.skipif(bool(clean_node.why_not()), reason=clean_node.why_not()),
              pytest.mark.skipif(shutil.which("patchelf") is None, reason="no patchelf: apt-get install patchelf")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Installed, and then moved: nothing in it may know where it was made."""
    folder = tmp_path_factory.mktemp("bundle")
    done = subprocess.run(["cmake", "--install", BUILD, "--prefix", folder / "first"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return shutil.move(folder / "first", folder / "moved")


@pytest.fixture(scope="module")
def node(bundle, tmp_path_factory):
    made = CleanNode(tmp_path_factory.mktemp("node"), os.path.realpath(SITE_PACKAGES))
    made.show(bundle, "/opt/lorashard")
    return made


def checks(said):
    return {line["check"]: line for line in json.loads(said.stdout)["checks"]}


def test_doctor_says_what_the_node_has(node):
    found = checks(node.run(PROGRAM, "doctor", "--json"))
    assert found["MPI"]["status"] == "OK" and "/opt/lorashard" in found["MPI"]["message"]
    assert found["program"]["status"] == "OK"


@pytest.mark.skipif(not HAS_CUDA, reason="built without its CUDA side")
def test_the_cuda_library_loads_there_and_finds_no_device(node):
    found = checks(node.run(PROGRAM, "doctor", "--json"))["CUDA"]
    assert found["status"] == "OK", found
    assert "NCCL" in found["message"] and "no device: " in found["message"], found


@pytest.mark.skipif(not HAS_CUDA, reason="built without its CUDA side")
def test_without_nvidias_wheels_the_missing_library_is_named_and_cpus_serve(bundle, tmp_path):
    # The two wheels that libtorch_cpu.so itself is linked to lie in one folder with others: those two files alone.
    wheels = tmp_path / "wheels"
    libraries = wheels / "nvidia" / "cu13" / "lib"
    os.makedirs(libraries)
    for name in ("libcudart.so.13", "libcupti.so.13"):
        shutil.copy(os.path.join(SITE_PACKAGES, "nvidia/cu13/lib", name), libraries)
    bare = CleanNode(tmp_path / "root", os.path.realpath(SITE_PACKAGES), packages=("torch",))
    bare.show(wheels / "nvidia", bare.binds[-1][1].replace("/torch", "/nvidia"))
    bare.show(bundle, "/opt/lorashard")
    found = checks(bare.run(PROGRAM, "doctor", "--json"))["CUDA"]
    assert found["status"] == "warning" and ".so" in found["message"] and "requirements-cuda.txt" in found["hint"], found
    assert "processor" in checks(bare.run(PROGRAM, "doctor", "--json"))


def test_a_base_and_a_training_on_two_ranks(node, tmp_path):
    work = tmp_path / "work"
    make_pictures(work / "pictures")
    write_recipe(work / "recipe.toml", "/tmp/work/base", "/tmp/work/pictures", "/tmp/work/run", train__max_train_steps=2,
                 train__total_batch_size=2)
    os.makedirs(node.root + "/tmp", exist_ok=True)
    shutil.copytree(work, node.root + "/tmp/work", dirs_exist_ok=True)
    node.run(PROGRAM, "init-base", "--preset", "tiny-sd15", "/tmp/work/base")
    said = node.run(PROGRAM, "launch", "/tmp/work/recipe.toml", "--ranks", 2)
    adapter = node.root + "/tmp/work/run/pytorch_lora_weights.safetensors"
    two = hashlib.sha256(open(adapter, "rb").read()).hexdigest()
    lines = [json.loads(line) for line in open(node.root + "/tmp/work/run/metrics.jsonl", encoding="utf-8")]
    assert [line["world_size"] for line in lines] == [2, 2], said.stderr
    node.run(PROGRAM, "train", "/tmp/work/recipe.toml", "--set", "output_dir='/tmp/work/alone'")
    alone = open(node.root + "/tmp/work/alone/pytorch_lora_weights.safetensors", "rb").read()
    assert hashlib.sha256(alone).hexdigest() == two


def test_a_gpu_that_is_asked_for_and_not_there_is_named(node):
    said = node.run(PROGRAM, "train", "/tmp/work/recipe.toml", "--set", "distributed.device=cuda", "--set",
                    "output_dir='/tmp/gpu/run'", code=2).stderr
    assert "cuda" in said and "hint:" in said
    assert ("no NVIDIA driver" if HAS_CUDA else "liblorashard_cuda.so") in said


def test_parquet_is_for_machines_with_arrow(node):
    os.makedirs(node.root + "/tmp", exist_ok=True)
    shutil.copy(__file__, node.root + "/tmp/pictures.parquet")
    said = node.run(PROGRAM, "pack", "/tmp/pictures.parquet", "--out", "/tmp/pictures-pack", code=2).stderr
    assert "/tmp/pictures.parquet" in said and "liblorashard_parquet.so" in said and "hint: " in said
    assert "liblorashard_parquet.so" in checks(node.run(PROGRAM, "doctor", "--json"))["parquet"]["message"]


def test_without_pytorch_it_says_what_to_install(node):
    said = node.run("/usr/bin/env", "LORASHARD_TORCH=/nowhere", PROGRAM, "doctor", code=2).stderr
    assert "/nowhere" in said and "torch==2.11.0" in said
