#!/usr/bin/env bash
# What only a GPU can show, in at most 8 minutes on one CUDA device (sizes are for 80 GB or more):
# the tests in tests/cuda, then what dumps, steps, losses and a live teacher cost. One JSON file and
# one table are written into a folder.
#
#   PYTHON=python3 bash scripts/gpu_check.sh --out FOLDER
#   bash scripts/gpu_check.sh --out FOLDER --dry-run    # every section on the CPU, tiny, about a minute
#   bash scripts/gpu_check.sh --wheels FOLDER --out FOLDER ...    # packages that are missing, as wheels
#
# Needs Python 3.11 or newer with torch, pytorch-lightning, torchmetrics, transformers, zarr (and its
# donfig), numcodecs, google-crc32c, filelock, numpy, safetensors, rich, xxhash and pytest. kdcache is
# taken from this checkout and need not be installed. Nothing is downloaded; nothing is installed but
# the wheels of --wheels, into a folder that is removed at the end. About 16 GB of the temporary
# folder (TMPDIR) and of memory are used, and given back. Other options: --help.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
path="$root"

if [ "${1:-}" = --wheels ]; then
  [ -d "${2:-}" ] || { echo "--wheels needs a folder." >&2; exit 2; }
  site="$(mktemp -d)"
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
    --target "$site" "$2"/*.whl
  path="$root:$site"
  shift 2
fi
PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}" "$python" -P -m scripts.gpu_check "$@"
