"""Two network namespaces as two hosts, with host names of their own, joined by a veth pair or by a relay that delays; mpirun starts
ranks in both. Needs root, iproute2, nftables. Only addresses of these namespaces are ever used."""

import contextlib
import fcntl
import heapq
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import threading
import time

from fault_runs import MPIRUN

# mpirun itself notices a host that is gone by TCP alone: by its keepalive, or where it has just sent something by tcp_retries2.
KEEPALIVE = ["--mca", "oob_tcp_keepalive_time", "5", "--mca", "oob_tcp_keepalive_intvl", "1", "--mca", "oob_tcp_keepalive_probes", "5"]
ADDRESSES = ("10.213.7.1", "10.213.7.2")
INTERFACE = "lsf0"


class CannotMakeHosts(Exception):
    """What is missing here."""


def sh(*command, check=True):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    if check and done.returncode != 0:
        raise CannotMakeHosts(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


class Relay(threading.Thread):
    """Carries packets between two TUN devices, each `delay` seconds later; loses the fraction `loss` of them."""

    def __init__(self, namespaces, delay, loss, seed=1):
        super().__init__(daemon=True)
        self.delay, self.loss, self.rng, self.ended, self.carried = delay, loss, random.Random(seed), False, 0
        self.files = [self.open_in(name) for name in namespaces]

    @staticmethod
    def open_in(namespace):
        """A TUN device in `namespace`: a thread of its own enters it, and the descriptor stays good outside."""
        made = []

        def enter():
            with open(f"/run/netns/{namespace}", "rb") as space:
                libc_setns(space.fileno())
            tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", INTERFACE.encode(), 0x0001 | 0x1000))  # TUNSETIFF, IFF_TUN | IFF_NO_PI
            made.append(tun)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if not made:
            raise CannotMakeHosts(f"no TUN device in {namespace}")
        return made[0]

    def run(self):
        waiting = []
        while not self.ended:
            pause = max(0, min(0.2, waiting[0][0] - time.monotonic())) if waiting else 0.2
            for source in select.select(self.files, [], [], pause)[0]:
                with contextlib.suppress(BlockingIOError):
                    packet = os.read(source, 65536)
                    if self.rng.random() >= self.loss:
                        self.carried += 1
                        heapq.heappush(waiting, (time.monotonic() + self.delay, self.carried, self.files[1 - self.files.index(source)], packet))
            while waiting and waiting[0][0] <= time.monotonic():
                with contextlib.suppress(OSError):
                    os.write(waiting[0][2], waiting[0][3])
                heapq.heappop(waiting)

    def end(self):
        self.ended = True
        self.join()
        for file in self.files:
            os.close(file)


def libc_setns(descriptor):
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0x40000000) != 0:  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")


class TwoHosts:
    def __init__(self, folder, delay=None):
        """Joined by a veth pair, or where `delay` is given by a relay that is so many seconds slow."""
        for program in ("ip", "nft", "unshare"):
            if shutil.which(program) is None:
                raise CannotMakeHosts(f"no '{program}': apt-get install --no-install-recommends iproute2 nftables util-linux")
        self.names = [f"lsf{os.getpid()}{side}" for side in "ab"]
        self.relay = None
        try:
            for name in self.names:
                sh("ip", "netns", "add", name)
            if delay is None:
                sh("ip", "-n", self.names[0], "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", self.names[1])
            else:
                self.relay = Relay(self.names, delay, 0.0)
                self.relay.start()
            for name, address in zip(self.names, ADDRESSES):
                sh("ip", "-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
                sh("ip", "-n", name, "link", "set", "lo", "up")
                sh("ip", "-n", name, "link", "set", INTERFACE, "up")
            self.agent = folder / f"agent-{self.names[1]}.sh"
            self.agent.write_text(f"#!/bin/bash\n# In the place of ssh: HOST COMMAND...\nshift\n{self.enter(1)} sh -c \"$*\"\n")
            self.agent.chmod(0o755)
        except BaseException:
            self.close()
            raise

    def enter(self, side):
        return f"exec ip netns exec {self.names[side]} unshare --uts sh -c 'hostname node-{'ab'[side]}; exec \"$0\" \"$@\"'"

    def mpirun(self, ranks, program):
        """The command that starts `ranks` = (on the first host, on the second) of `program`, to be run anywhere."""
        options = ["--mca", "plm_rsh_agent", self.agent, "--mca", "oob_tcp_if_include", INTERFACE, "--mca", "btl", "self,vader,tcp",
                   "--mca", "btl_tcp_if_include", INTERFACE, *KEEPALIVE]
        hosts = ",".join(f"{address}:{count}" for address, count in zip(ADDRESSES, ranks))
        words = [*MPIRUN, *options, "-H", hosts, "-n", sum(ranks), *program]
        return ["bash", "-c", f'{self.enter(0)} "$@"', "bash", *map(str, words)]

    def lose(self, percent):
        """So many of a hundred packets that arrive, at both ends. How: tc's netem, or nftables where the kernel lacks it."""
        for name in self.names:
            netem = subprocess.run(["tc", "-n", name, "qdisc", "replace", "dev", INTERFACE, "root", "netem", "loss", f"{percent}%"],
                                   capture_output=True, check=False) if shutil.which("tc") else None
            if netem is not None and netem.returncode == 0:
                how = "netem"
                continue
            how = "nftables"
            rules = ("add table inet loss", "add chain inet loss in { type filter hook input priority 0; }",
                     f"add rule inet loss in iifname {INTERFACE} numgen random mod 100 < {percent} drop")
            for rule in rules:
                sh("ip", "netns", "exec", name, "nft", rule)
        return how

    def link(self, up):
        sh("ip", "-n", self.names[1], "link", "set", INTERFACE, "up" if up else "down")

    def set_retries(self, count):
        """net.ipv4.tcp_retries2 of both hosts: how often TCP sends again what is not answered."""
        for name in self.names:
            sh("ip", "netns", "exec", name, "sh", "-c", f"echo {count} > /proc/sys/net/ipv4/tcp_retries2")

    def close(self):
        for name in self.names:
            for pid in sh("ip", "netns", "pids", name, check=False).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        if self.relay:
            self.relay.end()
        for name in self.names:
            sh("ip", "netns", "del", name, check=False)
