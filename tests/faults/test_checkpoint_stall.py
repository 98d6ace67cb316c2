"""What a checkpoint costs the training step it is due in: the snapshot, and the one before where that is still being written."""

import json
import os
import subprocess

import pytest

PROBE = os.path.join(os.environ.get("LORASHARD_BUILD_DIR", "build/dev"), "tests", "checkpoint_stall_probe")
SD15_RANK_4 = 797_184


def measure(folder, parameters, count):
    done = subprocess.run([PROBE, folder, str(parameters), str(count)], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_checkpoint_due_while_one_is_written_waits_and_none_is_dropped(tmp_path):
    found = measure(tmp_path / "run", SD15_RANK_4, 5)
    print(f"\n{found}")
    assert found["written"] == found["due"] == 10
    assert found["bytes"] > 4 * 4 * SD15_RANK_4  # parameters, two moments, the adapter beside them
    assert found["wait_in_flight_ms"][1] > 0


@pytest.mark.skipif(os.environ.get("LORASHARD_LONG_TESTS") != "1", reason="figures for docs/reliability.md")
@pytest.mark.parametrize("name, parameters, count", [("SD1.5, rank 4", SD15_RANK_4, 20), ("SD1.5, rank 64", 16 * SD15_RANK_4, 5),
                                                     ("SDXL, rank 4", 5_806_080, 5), ("SDXL, rank 64", 92_897_280, 1)])
def test_figures_of_other_sizes(tmp_path, name, parameters, count):
    found = measure(tmp_path / "run", parameters, count)
    print(f"\n{name}: {found}")
    assert found["written"] == found["due"]
