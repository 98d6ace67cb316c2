#!/usr/bin/env bash
# From a fresh Debian 12 machine to a trained LoRA adapter. What is there already is not done again.
#   ./quickstart.sh                everything
#   ./quickstart.sh --setup-only   packages and the private Python environment (.venv) only
set -euo pipefail
cd "$(dirname "$0")"

PACKAGES=(
  build-essential cmake ninja-build pkg-config ccache mold python3 python3-venv ca-certificates
  libopenmpi-dev openmpi-bin libhdf5-dev libvips-dev libxxhash-dev
  libre2-dev libicu-dev zlib1g-dev libfmt-dev libspdlog-dev libssl-dev
  nlohmann-json3-dev libtomlplusplus-dev libcli11-dev libprotobuf-dev protobuf-compiler
  fonts-dejavu-core tuxpaint-stamps-default
)
VENV=.venv
VOCABULARY=$VENV/share/lorashard/bpe_simple_vocab_16e6.txt.gz
RUN=runs/quickstart

say() { printf '\n== %s\n' "$*"; }

install_packages() {  # install_packages PACKAGE...: the missing ones, or a list and an end without root
  local missing=()
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  if [ "$(id -u)" -ne 0 ]; then
    echo "quickstart.sh: these Debian packages are missing, and only root can install them:" >&2
    echo "  sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 2
  fi
  say "installing ${#missing[@]} Debian packages"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
}

make_environment() {  # LibTorch, and the CLIP vocabulary for trial models
  local stamp
  stamp=$VENV/.built-from-$(sha256sum requirements.txt | cut -c1-16)
  [ -e "$stamp" ] && return
  say "making the Python environment $VENV (LibTorch comes from the torch wheel)"
  [ -x "$VENV/bin/pip" ] || /usr/bin/python3 -m venv "$VENV"
  "$VENV/bin/pip" install -q --disable-pip-version-check --no-deps -r requirements.txt
  mkdir -p "$(dirname "$VOCABULARY")"
  local wheels
  wheels=$(mktemp -d)
  "$VENV/bin/pip" download -q --disable-pip-version-check --no-deps -d "$wheels" open_clip_torch==3.3.0
  "$VENV/bin/python" - "$wheels" "$VOCABULARY" <<'PY'
import glob, sys, zipfile
(wheel,) = glob.glob(sys.argv[1] + "/*.whl")
open(sys.argv[2], "wb").write(zipfile.ZipFile(wheel).read("open_clip/bpe_simple_vocab_16e6.txt.gz"))
PY
  rm -rf "$wheels"
  touch "$stamp"
}

install_packages "${PACKAGES[@]}"
make_environment
[ "${1:-}" = --setup-only ] && exit 0

say "building"
cmake --preset release >build-configure.log 2>&1 || { cat build-configure.log >&2; exit 1; }
rm -f build-configure.log
cmake --build --preset release
LORASHARD=build/release/lorashard

if [ ! -e $RUN/pack/index.json ]; then
  say "packing 785 captioned pictures (Debian's tuxpaint-stamps-default)"
  "$LORASHARD" pack /usr/share/tuxpaint/stamps --out $RUN/pack
fi
if [ ! -e $RUN/base/model_index.json ]; then
  say "making a small random base model, shaped like Stable Diffusion 1.5"
  "$LORASHARD" init-base --preset tiny-sd15 --vocabulary "$VOCABULARY" $RUN/base
fi

say "training a LoRA on it with 2 MPI ranks"
"$LORASHARD" launch recipes/quickstart.toml --ranks 2
"$LORASHARD" report $RUN/adapter

cat <<END

== done
  adapter        $RUN/adapter/pytorch_lora_weights.safetensors   (diffusers: pipeline.load_lora_weights("$RUN/adapter"))
  log            $RUN/adapter/metrics.jsonl, and TensorBoard event files in $RUN/adapter/logs
  picture grid   $RUN/adapter/report.png                         (pictures with their captions, loss curve)

To use your own base and pictures, copy recipes/quickstart.toml and change
  model.pretrained_model_name_or_path   a diffusers folder instead of $RUN/base (or one .safetensors file, with model.tokenizer_name)
  data.train_data_dir                   a folder of pictures with metadata.jsonl, metadata.csv or .txt captions
  data.resolution                       512
  output_dir                            where the adapter goes
then: $LORASHARD launch my_recipe.toml --ranks 2
recipes/sd15_pokemon.toml has the numbers of the diffusers guide; docs/recipe_reference.md lists every key.
Training went on from a checkpoint, or was already done? Remove $RUN/adapter to train anew.
END
