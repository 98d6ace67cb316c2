"""What `cmake --install` runs: a folder that holds lorashard with every library that a bare node with PyTorch lacks.

    python3 cmake/make_bundle.py PREFIX PROGRAM [FILE]...      FILE: liblorashard_cuda.so, and gpu_tests where it was built

PREFIX/bin/lorashard is a script: it finds the node's LibTorch and starts libexec/lorashard/lorashard. Beside that lie the
CUDA side and Open MPI's launcher; lib/lorashard has the libraries (the closure of NEEDED entries, but for glibc, the compiler's own
and whatever comes with PyTorch) and Open MPI's plugins, share/lorashard their licences. Each file finds the others by a
run path relative to itself.
"""

import os
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
# Every node that PyTorch runs on has these: they must be the node's own.
SYSTEM = re.compile(r"(linux-vdso|ld-linux.*|libc|libm|libdl|libpthread|librt|libresolv|libutil|libanl|libstdc\+\+|libgcc_s)\.so.*")
PYTORCH = re.compile(r"/site-packages/(torch|nvidia)/")
# Fabrics that Debian's Open MPI leaves off by default; their libraries belong to the cluster.
FABRICS = re.compile(r"lib(fabric|ibverbs|ucp|psm2|psm_infinipath|oshmem)\.so")


def output(*command, codes=(0,)):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in codes:
        sys.exit(f"make_bundle.py: '{command[0]}' failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def sections(text, files):
    """A tool's output about several files, by file: each part begins with "FILE:" on a line."""
    parts, current = {file: "" for file in files}, files[0]
    for line in text.splitlines(keepends=True):
        if line.rstrip().removesuffix("     file format elf64-x86-64").endswith(":") and line.split(":")[0] in parts:
            current = line.split(":")[0]
        parts[current] += line
    return parts


def resolve(files):
    """file -> (soname -> path) of everything it is linked to, directly or not."""
    found = {}
    for file, text in sections(output("ldd", *files), files).items():
        if "not found" in text:
            sys.exit(f"make_bundle.py: a library of '{file}' is missing: {text}")
        found[file] = dict(re.findall(r"(\S+) => (/\S+)", text))
    return found


def closure(files, resolved):
    """What `files` need and the node may lack: soname -> path."""
    everywhere = {soname: path for libraries in resolved.values() for soname, path in libraries.items()}
    wanted, queue = {}, list(files)
    while queue:
        needed = set(re.findall(r"NEEDED\s+(\S+)", output("objdump", "-p", *queue))) - set(wanted)
        new = {soname: everywhere[soname] for soname in needed
               if soname in everywhere and not SYSTEM.fullmatch(soname) and not PYTORCH.search(everywhere[soname])}
        wanted |= new
        queue = list(new.values())
    return wanted


def put(files, run_path):
    """Copies each source to its target; they look for libraries in `run_path`."""
    for source, target in files.items():
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(os.path.realpath(source), target)
        os.chmod(target, 0o755)
    output("patchelf", "--set-rpath", run_path, *files.values())


def shared_objects(folder):
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [os.path.join(folder, name) for name in names if name.endswith(".so")]


def mpi_folder(what):
    """Where Open MPI keeps `what`, as ompi_info names it."""
    return re.search(rf"{what}: (\S+)", output("ompi_info", "--path", what.lower()))[1]


def licences(files, target):
    """The copyright file of each Debian package that something was taken from."""
    paths = {path for file in files for path in (file, os.path.realpath(file), os.path.realpath(file).removeprefix("/usr"))}
    packages = {line.split(":")[0] for line in output("dpkg-query", "-S", *paths, codes=(0, 1)).splitlines()}
    os.makedirs(target, exist_ok=True)
    for package in sorted(packages):
        if os.path.exists(f"/usr/share/doc/{package}/copyright"):
            shutil.copyfile(f"/usr/share/doc/{package}/copyright", os.path.join(target, package))


def glibc_needed(files):
    """The newest GLIBC_ version that any of `files` asks for."""
    found = re.findall(r"GLIBC_([0-9.]+)", output("objdump", "-p", *files))
    return ".".join(map(str, max(tuple(map(int, version.split("."))) for version in found)))


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    prefix, *ours = sys.argv[1:]
    ours = [file for file in ours if os.path.exists(file)]
    for tool in ("patchelf", "objdump", "ldd", "ompi_info"):
        if shutil.which(tool) is None:
            sys.exit(f"make_bundle.py: '{tool}' is missing: apt-get install patchelf binutils openmpi-bin")
    lib, libexec, share = (os.path.join(prefix, part, "lorashard") for part in ("lib", "libexec", "share"))
    launcher = [os.path.realpath(shutil.which(tool)) for tool in ("orterun", "orted")]
    plugins = shared_objects(mpi_folder("Pkglibdir"))
    resolved = resolve([*ours, *launcher, *plugins])
    plugins = [file for file in plugins if not any(FABRICS.search(name) for name in resolved[file])]
    # libpmix.so.2 lies in pmix2/lib, its plugins in pmix2/lib/pmix.
    pmix = {path for file in plugins for name, path in resolved[file].items() if name.startswith("libpmix.so")}
    pmix_plugins = [file for path in pmix for file in shared_objects(os.path.join(os.path.dirname(os.path.realpath(path)), "pmix"))]
    if pmix_plugins:
        resolved |= resolve(pmix_plugins)
    theirs = closure([*ours, *launcher, *plugins, *pmix_plugins], resolved)

    for folder in (lib, libexec, share):
        shutil.rmtree(folder, ignore_errors=True)
    put({file: os.path.join(libexec, os.path.basename(file)) for file in [*ours, *launcher]}, "$ORIGIN/../../lib/lorashard")
    shutil.move(os.path.join(libexec, "orterun"), os.path.join(libexec, "mpirun"))
    put({path: os.path.join(lib, soname) for soname, path in theirs.items()}, "$ORIGIN")
    put({file: os.path.join(lib, "openmpi", os.path.basename(file)) for file in plugins}, "$ORIGIN/..")
    if pmix_plugins:
        put({file: os.path.join(lib, "pmix", os.path.basename(file)) for file in pmix_plugins}, "$ORIGIN/..")
    shutil.copytree(mpi_folder("Pkgdatadir"), os.path.join(share, "openmpi"))
    shutil.copytree(mpi_folder("Sysconfdir"), os.path.join(share, "openmpi", "etc"))
    licences([*theirs.values(), *launcher, *plugins, *pmix_plugins], os.path.join(share, "licences"))
    shutil.copyfile(os.path.join(os.path.dirname(HERE), "LICENSE"), os.path.join(share, "LICENSE"))
    os.makedirs(os.path.join(prefix, "bin"), exist_ok=True)
    shutil.copyfile(os.path.join(HERE, "bundle_lorashard.sh"), os.path.join(prefix, "bin", "lorashard"))
    os.chmod(os.path.join(prefix, "bin", "lorashard"), 0o755)
    mpirun = os.path.join(prefix, "bin", "lorashard-mpirun")
    if not os.path.lexists(mpirun):
        os.symlink("lorashard", mpirun)

    glibc = glibc_needed([*ours, *theirs.values(), *launcher])
    print(f"-- {prefix}: {', '.join(map(os.path.basename, ours))}, {len(theirs)} libraries, "
          f"{len(plugins) + len(pmix_plugins)} plugins of Open MPI and PMIx; for x86-64 nodes with glibc {glibc} or newer")


if __name__ == "__main__":
    main()
