#!/usr/bin/env bash
# The project's own checks: format, lint, types, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
ensure_environment dev

if [ $# -eq 0 ]; then
  echo "Format and lint ..."
  .venv/bin/ruff format --check --quiet .
  .venv/bin/ruff check --quiet .
  echo "Types ..."
  .venv/bin/mypy
fi
echo "Tests ..."
# One thread a process: the test processes share the machine's cores among themselves.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest --dist worksteal -n "${TEST_PROCESSES:-$(getconf _NPROCESSORS_ONLN)}" "$@"
