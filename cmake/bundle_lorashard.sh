#!/bin/sh
# bin/lorashard of a bundle: finds the LibTorch of this machine and starts the program. Under the name lorashard-mpirun it starts the
# bundle's mpirun in the same environment. LORASHARD_TORCH names the folder of the
# torch package (…/site-packages/torch); else python3 is asked, or the Python that LORASHARD_PYTHON names.
here=$(dirname "$(readlink -f "$0")")
root=$(dirname "$here")
program=$root/libexec/lorashard

torch=${LORASHARD_TORCH:-}
if [ -z "$torch" ]; then
  python=${LORASHARD_PYTHON:-python3}
  torch=$("$python" -c '
import importlib.util
found = importlib.util.find_spec("torch")
print(found.submodule_search_locations[0] if found else "")' 2>/dev/null)
fi
if [ ! -e "$torch/lib/libtorch_cpu.so" ]; then
  echo "lorashard: there is no LibTorch in '${torch:-$python}'" >&2
  echo "hint: pip install torch==2.11.0, or give the folder of the torch package: LORASHARD_TORCH=.../site-packages/torch" >&2
  exit 2
fi
version=$(sed -n "s/^__version__ = '\([0-9.]*\).*/\1/p" "$torch/version.py" 2>/dev/null)
if [ "$version" != 2.11.0 ]; then
  echo "lorashard: expected torch 2.11.0 in '$torch', found '$version'" >&2
  echo "hint: the program was built against LibTorch 2.11.0, and its C++ interface changes from version to version" >&2
  exit 2
fi

LD_LIBRARY_PATH=$torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
PATH=$program:$PATH
# The bundle's own Open MPI, wherever it lies now.
OPAL_PREFIX=$root
OPAL_BINDIR=$program
OPAL_LIBDIR=$root/lib/lorashard
OPAL_PKGLIBDIR=$root/lib/lorashard/openmpi
OPAL_PKGDATADIR=$root/share/lorashard/openmpi
OPAL_SYSCONFDIR=$root/share/lorashard/openmpi/etc
PMIX_PKGLIBDIR=$root/lib/lorashard/pmix
export LD_LIBRARY_PATH PATH OPAL_PREFIX OPAL_BINDIR OPAL_LIBDIR OPAL_PKGLIBDIR OPAL_PKGDATADIR OPAL_SYSCONFDIR PMIX_PKGLIBDIR
# Open MPI starts ranks of other hosts over ssh or srun. Where it finds neither it would not even start those of this one,
# unless told that there are no others.
if ! command -v ssh >/dev/null 2>&1 && ! command -v srun >/dev/null 2>&1; then
  OMPI_MCA_plm=${OMPI_MCA_plm:-isolated}
  export OMPI_MCA_plm
fi
name=$(basename "$0")
exec "$program/${name#lorashard-}" "$@"
