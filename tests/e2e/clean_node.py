"""A machine in a folder: glibc, a shell, Python and the PyTorch wheel, and nothing else, entered by chroot in a mount namespace of
its own. Needs root. What a program finds there it brought along."""

import os
import re
import shutil
import subprocess

# dash and the few coreutils that the bundle's script uses, and what Python's interpreter starts with.
PROGRAMS = ["/bin/sh", "/usr/bin/readlink", "/usr/bin/dirname", "/usr/bin/basename", "/usr/bin/sed", "/usr/bin/env", "/usr/bin/ls",
            os.path.realpath("/usr/bin/python3")]
# All of glibc, and what the compiler adds: every PyTorch asks for it.
LIBRARIES = ["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2", "libdl.so.2", "librt.so.1", "libpthread.so.0",
             "libutil.so.1", "libanl.so.1", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1"]
ENTER = r"""
set -e
root=$1; shift
mount --make-rprivate /
while [ "$1" != -- ]; do  # pairs of folders: of this machine, there; read-only
  mkdir -p "$root$2"; mount --bind -o ro "$1" "$root$2"; shift 2
done
shift
mkdir -p "$root/proc" "$root/dev" "$root/tmp" "$root/sys"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --bind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm" 2>/dev/null || mount --bind /dev/shm "$root/dev/shm"
exec /usr/sbin/chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/tmp LANG=C.UTF-8 $LORASHARD_NODE_ENV "$@"
"""


def linked_libraries(file):
    """What ldd finds, the loader included."""
    text = subprocess.run(["ldd", file], capture_output=True, text=True, check=True).stdout
    return re.findall(r"(?:=> |^\s*)(/\S+)", text, re.MULTILINE)


class CleanNode:
    """`root`: an empty folder to make the machine in. `site_packages`: the wheels to show there."""

    def __init__(self, root, site_packages, packages=("torch", "nvidia")):
        self.root = str(root)
        python = PROGRAMS[-1]
        for file in PROGRAMS:
            self._copy(file)
            for library in linked_libraries(file):
                self._copy(library)
        for name in LIBRARIES:
            self._copy(f"/lib/x86_64-linux-gnu/{name}")
        os.symlink(os.path.basename(python), self.root + "/usr/bin/python3")
        version = os.path.basename(python)
        self.binds = [(f"/usr/lib/{version}", f"/usr/lib/{version}")]
        target = f"/usr/local/lib/{version}/dist-packages"
        for package in packages:
            self.binds.append((os.path.join(site_packages, package), f"{target}/{package}"))
        self._write("/etc/passwd", "root:x:0:0:root:/tmp:/bin/sh\n")
        self._write("/etc/hosts", "127.0.0.1 localhost\n")

    def _copy(self, file):
        for path in {file, os.path.realpath(file)}:
            target = self.root + path
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if not os.path.exists(target):
                shutil.copy2(os.path.realpath(file), target)

    def _write(self, path, text):
        os.makedirs(os.path.dirname(self.root + path), exist_ok=True)
        with open(self.root + path, "w", encoding="utf-8") as file:
            file.write(text)

    def show(self, folder, at):
        """Makes a folder of this machine visible there, read-only."""
        self.binds.append((str(folder), at))

    def run(self, *command, code=0, **environment):
        """Runs `command` there with an empty environment but for `environment`. Fails unless it ends with `code`."""
        pairs = [word for bind in self.binds for word in bind]
        extra = " ".join(f"{name}={value}" for name, value in environment.items())
        done = subprocess.run(["unshare", "--mount", "--pid", "--fork", "/bin/sh", "-c", ENTER, "enter", self.root, *pairs, "--",
                               *map(str, command)],
                              capture_output=True, text=True, timeout=900, env={**os.environ, "LORASHARD_NODE_ENV": extra})
        assert done.returncode == code, f"exit code {done.returncode}, expected {code}\n{done.stdout[-1000:]}{done.stderr[-4000:]}"
        return done


def why_not():
    """Why there can't be a clean node here; empty when there can."""
    if os.geteuid() != 0:
        return "only root can enter a chroot"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        return "no mount namespaces here"
    return ""
