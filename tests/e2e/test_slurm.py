"""`lorashard launch --slurm` on a real slurmctld with two slurmd: the time limit, preemption, a killed rank, a lost node and scancel.
Without root or Slurm's programs these tests fail and say so: apt-get install --no-install-recommends slurmctld slurmd slurm-client."""

import os
import re
import signal
import subprocess
import time

import pytest

from lorashard_runs import adapter_hash, lorashard, make_base, make_pack, make_pictures, metrics, write_recipe
from slurm_cluster import Cluster

FOR_EVER = 1_000_000  # steps: the run ends because something ends it


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    make_base(folder / "base")
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    one = Cluster(tmp_path_factory.mktemp("cluster"))
    yield one
    one.sh("scancel --signal=KILL --full -u root; scancel -u root")
    time.sleep(1)
    one.stop()
    one.kill_ranks()


@pytest.fixture(autouse=True)
def no_job_outlives_a_failed_test(request):
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed and "cluster" in request.fixturenames:
        cluster = request.getfixturevalue("cluster")
        cluster.sh("scancel -u root")
        cluster.kill_ranks()


def recipe(work, name, **overrides):
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name,
                        **{"train__total_batch_size": 2, "checkpoint__checkpointing_steps": 1000, **overrides})


def log(work, name, job_id):
    path = work / name / f"slurm-{job_id}.log"
    return path.read_text() if path.exists() else ""


def steps_done(work, name):
    file = work / name / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0  # its last line may be under way


def wait_for_step(cluster, work, name, step):
    cluster.wait_for(lambda: steps_done(work, name) >= step, 60, f"'{name}' has done step {step}")


def wait_for_line(cluster, work, name, job_id, line, seconds=60):
    cluster.wait_for(lambda: line in log(work, name, job_id), seconds, f"the log of '{name}' says '{line}':\n{log(work, name, job_id)[-3000:]}")


def undisturbed_hash(work, name, **overrides):
    """Two local ranks, no Slurm: what every other run must equal."""
    lorashard("launch", recipe(work, name, **overrides), "--ranks", 2)
    return adapter_hash(work / name)


def script(work, name, *arguments, code=0, **kwargs):
    return lorashard("launch", recipe(work, name), "--slurm", "--print", *arguments, code=code, **kwargs)


def test_the_script_is_bash_and_holds_what_was_asked_for(work):
    text = script(work, "print me", "--nodes", 2, "--ranks-per-node", 4, "--time", "1:30:00", "--partition", "gpu", "--account", "me", "--gpus-per-node",
                  4, "--signal-before", 90, "--max-requeues", 5, "--sbatch=--constraint=a100", "--set", "optimizer.learning_rate=1e-5").stdout
    for line in ("nodes=2", "ntasks-per-node=4", "time=1:30:00", "partition=gpu", "account=me", "gpus-per-node=4", "signal=B:USR1@90", "requeue",
                 "open-mode=append", "constraint=a100", 'job-name="lorashard-print me"', f'output="{work}/print me/slurm-%j.log"'):
        assert f"\n#SBATCH --{line}\n" in text, line
    assert "max_requeues=5 " in text and "--set 'optimizer.learning_rate=1e-5'" in text and f"'{work}/print me.toml'" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert not (work / "print me").exists()


@pytest.mark.parametrize("wrong, said", [
    (["--time", "1"], "signal-before"), (["--time", "soon"], "soon"), (["--partition", 'a"b'], "partition"),
    (["--ranks", "2"], "--ranks"), (["--sbatch=constraint"], "constraint"), (["--set", 'checkpoint.resume_from_checkpoint="none"'], "latest")])
def test_a_script_that_could_not_work_is_refused(work, wrong, said):
    assert said in script(work, "wrong", *wrong, code=2).stderr


def test_without_sbatch_the_error_says_so(work, tmp_path):
    os.symlink("/bin/sh", tmp_path / "sh")
    said = lorashard("launch", recipe(work, "no-sbatch"), "--slurm", code=2, env={**os.environ, "PATH": str(tmp_path)}).stderr
    assert "sbatch" in said and "--print" in said


@pytest.fixture(scope="module")
def near_the_limit(cluster, work):
    """Two jobs that meet their time limit together, since Slurm looks at limits twice a minute: one with the signal before it, on
    both nodes; one without, stopped by the limit itself."""
    cluster.wait_until_limits_are_read_soon()
    path = recipe(work, "signalled", train__max_train_steps=FOR_EVER)
    signalled = cluster.submit(path, "--slurm", "--nodes", 2, "--time", 30, "--signal-before", 24)
    text = script(work, "limited", "--set", f"train.max_train_steps={FOR_EVER}").stdout
    os.makedirs(work / "limited")
    (work / "limited.sbatch").write_text(re.sub(r"#SBATCH --signal.*\n", "", text))
    limited = cluster.sh(f"sbatch --parsable --time=30 '{work}/limited.sbatch'").strip()
    for job_id, name, seconds in ((signalled, "signalled", 50), (limited, "limited", 4)):
        wait_for_step(cluster, work, name, 1)  # ranks that are there: a limit that comes before is another case
        assert cluster.sh(f"scontrol update JobId={job_id} EndTime=$(date --date='+{seconds} seconds' +%FT%T)") == ""
    return signalled, limited


def test_signalled_before_the_limit_it_is_requeued_and_ends_with_the_same_bytes_on_other_ranks(cluster, work, near_the_limit):
    job_id = near_the_limit[0]
    wait_for_line(cluster, work, "signalled", job_id, "queued again")
    done = steps_done(work, "signalled")
    cluster.wait_for(lambda: cluster.job(job_id).get("JobState") == "PENDING", 60, "the job is queued again")
    assert cluster.sh(f"scontrol update JobId={job_id} NumNodes=1 NumTasks=1 TimeLimit=30") == ""
    recipe(work, "signalled", train__max_train_steps=done + 10)
    assert (work / "signalled" / f"checkpoint-{done}").exists()
    assert f"stopped on request, at step {done}; queued again" in log(work, "signalled", job_id)

    assert cluster.wait_for_end(job_id) == "COMPLETED"
    text = log(work, "signalled", job_id)
    assert "start 1, 2 ranks on n[1-2], from step 0" in text and f"start 2, 1 ranks on n1, from step {done}" in text
    assert cluster.job(job_id)["Restarts"] == "1"
    assert [line["global_step"] for line in metrics(work / "signalled")] == list(range(1, done + 11))
    assert adapter_hash(work / "signalled") == undisturbed_hash(work, "signalled-undisturbed", train__max_train_steps=done + 10)


def test_stopped_by_the_limit_itself_it_saves_and_is_requeued(cluster, work, near_the_limit):
    job_id = near_the_limit[1]
    wait_for_line(cluster, work, "limited", job_id, "queued again")
    wait_for_line(cluster, work, "limited", job_id, "start 2, 1 ranks on")
    cluster.sh(f"scancel {job_id}")
    text = log(work, "limited", job_id)
    assert "DUE TO TIME LIMIT" in text
    done = int(re.search(r"stopped on request, at step (\d+); queued again", text)[1])
    assert (work / "limited" / f"checkpoint-{done}").exists() and f"from step {done}" in text


def test_scancel_stops_it_with_a_checkpoint_and_for_good(cluster, work):
    job_id = cluster.submit(recipe(work, "cancelled", train__max_train_steps=FOR_EVER), "--slurm", "--nodes", 2)
    wait_for_step(cluster, work, "cancelled", 3)
    cluster.sh(f"scancel {job_id}")
    assert cluster.wait_for_end(job_id) == "CANCELLED"
    wait_for_line(cluster, work, "cancelled", job_id, "it is Slurm that ends this start")
    done = steps_done(work, "cancelled")
    assert (work / "cancelled" / f"checkpoint-{done}").exists() and cluster.job(job_id)["Restarts"] == "0"


def test_preempted_by_a_more_urgent_job_it_goes_on_afterwards_with_the_same_bytes(cluster, work):
    job_id = cluster.submit(recipe(work, "preempted", train__max_train_steps=FOR_EVER), "--slurm", "--nodes", 2)
    wait_for_step(cluster, work, "preempted", 3)
    urgent = cluster.sh("sbatch --parsable --partition=urgent --nodes=2 --exclusive --output=/dev/null --wrap='sleep 1'").strip()
    wait_for_line(cluster, work, "preempted", job_id, "it is Slurm that ends this start")
    done = steps_done(work, "preempted")
    recipe(work, "preempted", train__max_train_steps=done + 10)
    assert cluster.wait_for_end(urgent) == "COMPLETED"
    assert cluster.wait_for_end(job_id) == "COMPLETED"
    assert f"start 2, 2 ranks on n[1-2], from step {done}" in log(work, "preempted", job_id)
    assert adapter_hash(work / "preempted") == undisturbed_hash(work, "preempted-undisturbed", train__max_train_steps=done + 10)


def test_requeued_by_an_administrator_it_saves_and_goes_on_with_the_same_bytes(cluster, work):
    job_id = cluster.submit(recipe(work, "requeued", train__max_train_steps=FOR_EVER), "--slurm", "--nodes", 2)
    wait_for_step(cluster, work, "requeued", 3)
    assert cluster.sh(f"scontrol requeue {job_id}") == ""
    wait_for_line(cluster, work, "requeued", job_id, "it is Slurm that ends this start")
    done = steps_done(work, "requeued")
    recipe(work, "requeued", train__max_train_steps=done + 10)
    assert (work / "requeued" / f"checkpoint-{done}").exists()
    assert cluster.wait_for_end(job_id) == "COMPLETED" and cluster.job(job_id)["Restarts"] == "1"
    assert f"start 2, 2 ranks on n[1-2], from step {done}" in log(work, "requeued", job_id)
    assert [line["global_step"] for line in metrics(work / "requeued")] == list(range(1, done + 11))
    assert adapter_hash(work / "requeued") == undisturbed_hash(work, "requeued-undisturbed", train__max_train_steps=done + 10)


def test_ranks_that_outlive_their_slurmd_give_way_to_the_next_start(cluster, work):
    """Slurm queues the job again while the ranks of the start before still train: two copies, one of which may write."""
    path = recipe(work, "outlived", train__max_train_steps=FOR_EVER, checkpoint__checkpointing_steps=5)
    job_id = cluster.submit(path, "--slurm", "--nodes", 1, "--ranks-per-node", 2)
    cluster.wait_for(lambda: (work / "outlived" / "checkpoint-5").exists(), 60, "the first checkpoint is there")
    node = cluster.job(job_id)["NodeList"]
    before = cluster.ranks(job_id, node)
    cluster.kill_daemon(node)
    wait_for_line(cluster, work, "outlived", job_id, "start 2, ", 120)
    assert set(before) <= set(cluster.ranks(job_id))  # nothing has ended them yet, and nothing else will
    wait_for_line(cluster, work, "outlived", job_id, "took the run folder over from", 60)
    cluster.wait_for(lambda: not set(before) & set(cluster.ranks(job_id)), 60, "the ranks of the first start are gone")
    done = steps_done(work, "outlived")
    wait_for_step(cluster, work, "outlived", done + 2)
    cluster.start_node(node)
    recipe(work, "outlived", train__max_train_steps=steps_done(work, "outlived") + 40)
    assert cluster.sh(f"scontrol requeue {job_id}") == ""  # so that it reads the recipe with the end
    assert cluster.wait_for_end(job_id, 150) == "COMPLETED", log(work, "outlived", job_id)
    # What the old ranks said last went to an srun that was gone by then.
    last = steps_done(work, "outlived")
    assert [line["global_step"] for line in metrics(work / "outlived")] == list(range(1, last + 1))
    assert adapter_hash(work / "outlived") == undisturbed_hash(work, "outlived-undisturbed", train__max_train_steps=last)
    cluster.wait_for_idle_nodes()


def lost_and_found(cluster, work, name, lose):
    """A job that loses something after its first checkpoint; returns its log once it has ended."""
    lasting = {"train__max_train_steps": 80, "checkpoint__checkpointing_steps": 20}
    job_id = cluster.submit(recipe(work, name, **lasting), "--slurm", "--nodes", 2)
    cluster.wait_for(lambda: (work / name / "checkpoint-20").exists(), 60, "the first checkpoint is there")
    lose(job_id)
    assert cluster.wait_for_end(job_id, 150) == "COMPLETED", log(work, name, job_id)
    assert cluster.job(job_id)["Restarts"] == "1"
    if not (work / "80-undisturbed").exists():
        undisturbed_hash(work, "80-undisturbed", **lasting)
    assert adapter_hash(work / name) == adapter_hash(work / "80-undisturbed")
    return log(work, name, job_id)


def test_a_killed_rank_ends_the_start_and_the_next_one_goes_on_to_the_same_bytes(cluster, work):
    text = lost_and_found(cluster, work, "rank-lost", lambda job_id: os.kill(cluster.ranks(job_id, "n2")[0], signal.SIGKILL))
    assert "a rank or a node was lost (exit code" in text and "queued again" in text


def test_a_lost_node_requeues_the_job_which_goes_on_when_there_are_nodes_to_the_same_bytes(cluster, work):
    def lose(job_id):
        cluster.lose("n2")
        cluster.wait_for(lambda: cluster.job(job_id)["JobState"] == "PENDING", 90, "the job is queued again")
        cluster.start_node("n2")  # with what the lost step left in its spool folder

    assert "start 2, 2 ranks on n[1-2], from step" in lost_and_found(cluster, work, "node-lost", lose)


def test_an_error_that_would_come_again_ends_the_job_with_its_code(cluster, work):
    path = recipe(work, "wrong-data", data__train_data_dir=str(work / "nowhere"))
    job_id = cluster.submit(path, "--slurm", "--nodes", 2)
    assert cluster.wait_for_end(job_id) == "FAILED"
    assert cluster.job(job_id)["ExitCode"] == "2:0" and cluster.job(job_id)["Restarts"] == "0"
    assert "another start would end the same" in log(work, "wrong-data", job_id)


def test_losses_without_progress_end_the_job(cluster, work):

    job_id = cluster.submit(recipe(work, "stuck"), "--slurm", "--max-requeues", 1, "--nodes", 1)
    def lost_again():
        cluster.kill_ranks(job_id)
        return "ends with exit code" in log(work, "stuck", job_id)

    cluster.wait_for(lost_again, 60, "the job gave up")
    assert cluster.wait_for_end(job_id) == "FAILED"
    text = log(work, "stuck", job_id)
    assert "1 requeues made no progress beyond step 0" in text and "start 2" in text and "start 3" not in text
    assert text.count("trying once more in this allocation") == 2


def test_srun_by_hand_writes_the_same_bytes_and_without_pmix_is_refused(cluster, work):
    program = os.environ.get("LORASHARD", "build/dev/lorashard")
    said = cluster.sh(f"srun --nodes=2 --ntasks=3 --mpi=none '{program}' train '{recipe(work, 'by-hand')}' 2>&1")
    assert "use 'srun --mpi=pmix'" in said and not (work / "by-hand" / "metrics.jsonl").exists()
    assert "wrote" in cluster.sh(f"srun --nodes=2 --ntasks=3 --mpi=pmix '{program}' train '{recipe(work, 'by-hand')}' 2>&1")
    assert adapter_hash(work / "by-hand") == undisturbed_hash(work, "by-hand-undisturbed")
