#!/usr/bin/env bash
# The tests of the rooms that compute, as another processor and another number of threads would run
# them: sums in another order end in other last digits. Run it after scripts/test.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
ensure_environment dev

rooms=(tests/losses tests/codecs tests/data tests/train tests/dump)

# numerics CAPABILITY THREADS: ATEN_CPU_CAPABILITY is default (no vector instructions), avx2 or
# avx512; empty: the best that the machine has.
numerics() {
  echo "Numeric tests: ${1:-native} instructions, $2 thread(s) ..."
  env ${1:+ATEN_CPU_CAPABILITY=$1} OMP_NUM_THREADS="$2" .venv/bin/python -m pytest \
    --dist worksteal -n "${TEST_PROCESSES:-$(getconf _NPROCESSORS_ONLN)}" "${rooms[@]}"
}

numerics default 1
numerics "" 2
