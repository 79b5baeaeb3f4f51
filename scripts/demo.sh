#!/usr/bin/env bash
# A demo from nothing: makes .venv, then one teacher, its cache, and students from it.
#   bash scripts/demo.sh                                        digits: packages only, no download
#   bash scripts/demo.sh language_model --data ../shared/data   text files of your own
#   bash scripts/demo.sh speech --data ../shared/data           recordings: a folder with fsdd.zip
# Further arguments go to the demo; see examples/.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
case "${1:-}" in
  language_model | speech)
    example=$1
    shift
    ensure_environment examples,hf
    exec .venv/bin/python -m "examples.$example" "$@"
    ;;
esac
ensure_environment examples
exec .venv/bin/python -m examples.digits "$@"
