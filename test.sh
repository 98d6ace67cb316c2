#!/usr/bin/env bash
# Installs what the tests need besides, builds, and runs them all. Arguments go to ctest:
#   ./test.sh -L unit               one label (unit, mpi, oracle, e2e, faults, slurm)
#   LORASHARD_LONG_TESTS=1 ./test.sh    the long counts
set -euo pipefail
cd "$(dirname "$0")"

./quickstart.sh --setup-only

needed=()
for package in libgtest-dev libgmock-dev slurmctld slurmd slurm-client patchelf iproute2 nftables strace faketime; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || needed+=("$package")
done
if [ ${#needed[@]} -gt 0 ]; then
  [ "$(id -u)" -eq 0 ] || { echo "test.sh: missing: sudo apt-get install --no-install-recommends ${needed[*]}" >&2; exit 2; }
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${needed[@]}" >/dev/null
fi
stamp=.venv/.tests-from-$(sha256sum requirements-test.txt | cut -c1-16)
if [ ! -e "$stamp" ]; then
  echo "== installing the reference implementations (diffusers, transformers, peft and what they need)"
  .venv/bin/pip install -q --disable-pip-version-check -r requirements-test.txt
  touch "$stamp"
fi

cmake --preset dev
cmake --build --preset dev
exec ctest --preset dev -j "$(nproc)" "$@"
