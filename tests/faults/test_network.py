"""Two network namespaces as two hosts: packets lost, a slow link, a link that is cut for a while or for ever.

Needs root, iproute2 and nftables; without them these tests fail and say so.
"""

import re
import time

import pytest

from fault_runs import FOR_EVER, SOON, Run, make_inputs
from lorashard_runs import LORASHARD, adapter_hash, lorashard, write_recipe
from two_hosts import TwoHosts

RANKS = (2, 2)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("network"))


@pytest.fixture
def hosts(tmp_path, request):
    two = TwoHosts(tmp_path, **getattr(request, "param", {}))
    yield two
    two.close()


def recipe(work, name, **overrides):
    # One layer: a message of one packet, or the lost ones would make this an hour.
    values = {"train__total_batch_size": 4, "train__max_train_steps": 12, "lora__rank": 1, "checkpoint__checkpointing_steps": 4,
              "lora__target_modules": ["mid_block.attentions.0.transformer_blocks.0.attn2.to_v"]}
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name, **{**values, **overrides})


@pytest.fixture(scope="module")
def undisturbed(work):
    lorashard("train", recipe(work, "undisturbed"))
    return adapter_hash(work / "undisturbed")


def start(hosts, path):
    return Run(path, hosts.mpirun(RANKS, [LORASHARD, "train", path]))


def test_thirty_percent_of_the_packets_lost_change_no_bit(work, undisturbed, hosts):
    run = start(hosts, recipe(work, "loss"))
    run.wait_for_step(2)
    how, since = hosts.lose(30), time.monotonic()
    code, said = run.end(since, f"30 % of packets lost ({how}) from step 2 to the end of 12", seconds=600)
    assert code == 0 and adapter_hash(work / "loss") == undisturbed, said


@pytest.mark.parametrize("hosts", [{"delay": 0.5}], indirect=True)
def test_half_a_second_of_delay_changes_no_bit(work, undisturbed, hosts):
    since = time.monotonic()
    code, said = start(hosts, recipe(work, "delay")).end(since, "every packet 0.5 s late, 12 steps with the start", seconds=600)
    assert code == 0 and "is lost" not in said and adapter_hash(work / "delay") == undisturbed, said


def test_a_link_that_is_down_for_five_seconds_is_survived(work, undisturbed, hosts):
    run = start(hosts, recipe(work, "pause", train__max_train_steps=FOR_EVER))
    run.wait_for_step(3)
    hosts.link(up=False)
    time.sleep(5)
    hosts.link(up=True)
    done = run.steps()
    run.wait_for(lambda: run.steps() > done + 3)
    run.kill()
    assert "is lost" not in run.said()
    # The steps before, in and after the pause are those of a run without one.
    last = 4 * ((done + 3) // 4)
    lorashard("train", recipe(work, "pause", train__max_train_steps=last + 4))
    lorashard("train", recipe(work, "no-pause", train__max_train_steps=last + 4))
    assert adapter_hash(work / "pause") == adapter_hash(work / "no-pause")


def test_a_link_that_stays_down_ends_all_ranks_on_both_sides_with_the_lost_ones_named(work, hosts):
    hosts.set_retries(5)  # or mpirun, which the ranks have left by then, waits for its daemon for minutes
    run = start(hosts, recipe(work, "cut", train__max_train_steps=FOR_EVER, distributed__collective_timeout_s=6))
    run.wait_for_step(3)
    hosts.link(up=False)
    since = time.monotonic()
    gone = {}
    while len(gone) < sum(RANKS):
        assert time.monotonic() - since < SOON, f"a hang: {run.said()}"
        left = run.ranks()
        for rank in range(sum(RANKS)):
            if rank not in left:
                gone.setdefault(rank, time.monotonic() - since)
        time.sleep(0.02)
    print(f"\nlink down for ever, collective_timeout_s = 6: ranks gone after {sorted(round(t, 2) for t in gone.values())} s")
    code, said = run.end(since, "the same, mpirun itself")
    assert code == 76, said
    # rank 0's side sees both of the other side go; its log still reaches us, the other side's may not
    assert re.search(r"^rank 0: error: rank 2 \(node-b, local rank 0\) is lost: no heartbeat", said, re.M), said
    assert re.search(r"rank 3 \(node-b, local rank 1\) is lost: no heartbeat", said, re.M), said
