"""A real Slurm cluster for tests: slurmctld and two slurmd (nodes n1 and n2) on this machine, in a temporary folder, on ports of its
own, with no munge, no cgroups and no systemd. Needs root (slurmd runs jobs as their user) and Debian's slurmctld, slurmd, slurm-client."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time

from lorashard_runs import lorashard

CONF = """
ClusterName=lorashard-test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
# Also how long a requeued job must wait before it starts again; Slurm's default is 120 s.
AuthInfo=cred_expire=5
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=6
KillWait=20
InactiveLimit=0
MinJobAge=300
StateSaveLocation={folder}/state
# Each node its own, or the PMIx plugins of two nodes meet in one /tmp.
TmpFS={folder}/tmp-%n
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# Four CPUs a node whatever the machine has: the jobs ask for up to three ranks a node.
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 State=UNKNOWN
PartitionName=work Nodes=n1,n2 Default=YES MaxTime=60 State=UP
PartitionName=urgent Nodes=n1,n2 MaxTime=60 PriorityTier=10 State=UP
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""


class SlurmMissing(Exception):
    """Why no cluster can be started here."""


def why_no_cluster():
    """None, or what is missing: a test that needs Slurm fails with it."""
    missing = [program for program in ("slurmctld", "slurmd", "sbatch", "srun", "scontrol") if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install --no-install-recommends slurmctld slurmd slurm-client"
    return None if os.geteuid() == 0 else "slurmd runs jobs as their user and needs root"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def parent_of(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return int(file.read().rsplit(") ", 1)[1].split()[1])
    except OSError:
        return None


class Cluster:
    def __init__(self, folder):
        if why_no_cluster():
            raise SlurmMissing(why_no_cluster())
        self.folder = str(folder)
        self.daemons = {}
        self.started = time.monotonic()
        for name in ("state", "spool-n1", "spool-n2", "tmp-n1", "tmp-n2"):
            os.makedirs(os.path.join(self.folder, name))
        with open(os.path.join(self.folder, "slurm.conf"), "w", encoding="utf-8") as file:
            file.write(CONF.format(folder=self.folder, ports=free_ports(3)))
        # Both nodes are this host, so Open MPI's shared memory segments, named by host and local rank, would collide; and
        # nothing may look for a way out of it.
        self.environment = {**os.environ, "SLURM_CONF": os.path.join(self.folder, "slurm.conf"), "OMPI_MCA_btl": "self,tcp",
                            "OMPI_MCA_btl_tcp_if_include": "lo"}
        try:
            self.start("slurmctld", ["slurmctld", "-D", "-i"])
            self.start_node("n1")
            self.start_node("n2")
            self.wait_for_idle_nodes()
        except BaseException:
            self.stop()
            raise

    def start_node(self, node):
        self.start(node, ["slurmd", "-D", "-N", node])

    def wait_for_idle_nodes(self):
        self.wait_for(lambda: self.sh("sinfo -h -N -p work -o %T").split() == ["idle", "idle"], 60, "both nodes are idle")

    def start(self, name, command):
        with open(os.path.join(self.folder, f"{name}.out"), "ab") as out:
            self.daemons[name] = subprocess.Popen(command, env=self.environment, stdout=out, stderr=out, start_new_session=True)

    def stop(self):
        for daemon in self.daemons.values():
            if daemon.poll() is None:
                daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def sh(self, command):
        done = subprocess.run(["bash", "-c", command], env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else f"{done.stdout}{done.stderr}(exit code {done.returncode})"

    def wait_until_limits_are_read_soon(self):
        """Slurm looks at time limits every 31 s or so; a job started shortly before is a short one. Saves time, no more."""
        time.sleep((19 - (time.monotonic() - self.started)) % 31)

    def submit(self, *arguments):
        """lorashard launch --slurm; returns the job id it prints."""
        return lorashard("launch", *arguments, env=self.environment).stdout.strip()

    def job(self, job_id):
        """What scontrol knows of the job, as a dictionary."""
        return dict(re.findall(r"(\w+)=(\S*)", self.sh(f"scontrol -o show job {job_id}")))

    def wait_for_end(self, job_id, seconds=90):
        """The state in which the job ended."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        self.wait_for(lambda: self.job(job_id).get("JobState") in ended, seconds, f"job {job_id} has ended")
        return self.job(job_id).get("JobState")

    def ranks(self, job_id=None, node=None):
        """Process ids of the job's ranks, or of all jobs', on all nodes or one."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    environment = dict(item.split(b"=", 1) for item in file.read().split(b"\0") if b"=" in item)
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    command = file.read().split(b"\0")
            except OSError:
                continue
            ours = environment.get(b"SLURM_CONF") == self.environment["SLURM_CONF"].encode() and b"SLURM_STEP_ID" in environment
            if not ours or command[1:2] != [b"train"] or (job_id and environment.get(b"SLURM_JOB_ID") != str(job_id).encode()):
                continue
            if node is None or environment.get(b"SLURMD_NODENAME") == node.encode():
                found.append(int(name))
        return found

    def kill_ranks(self, job_id=None, node=None):
        """Of a job, or of all."""
        for pid in self.ranks(job_id, node):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended meanwhile

    def kill_daemon(self, node):
        """slurmd alone: the ranks it started live on, and Slurm takes the node for lost."""
        self.daemons[node].kill()
        self.daemons[node].wait()

    def lose(self, node):
        """The node as if its power were cut: slurmd, the steps' daemons and all ranks on it are killed."""
        ranks = [pid for job_id in self.sh("squeue -h -t R -o %A").split() for pid in self.ranks(job_id, node)]
        parents = {parent_of(pid) for pid in ranks} - {None}
        self.kill_daemon(node)
        for pid in [*parents, *ranks]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended meanwhile

    def wait_for(self, condition, seconds, what):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"after {seconds} s still not: {what}\n{self.sh('squeue -l; sinfo -N -l')}{self.tail()}")
            time.sleep(0.1)

    def tail(self):
        """The ends of the daemons' logs, for a failure's message."""
        return self.sh(f"tail -n 15 {self.folder}/slurmctld.log {self.folder}/slurmd-*.log {self.folder}/*.out")
