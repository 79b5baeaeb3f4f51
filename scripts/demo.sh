#!/usr/bin/env bash
# The demo: a teacher is dumped once, students train from its cache. No download but packages.
# Arguments go to examples/digits/demo.py (--help lists them).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
ensure_environment examples
exec .venv/bin/python examples/digits/demo.py "$@"
