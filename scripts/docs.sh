#!/usr/bin/env bash
# The documentation as a site in site/: open site/index.html. A broken link is an error.
# Arguments go to mkdocs build, such as --site-dir FOLDER.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
ensure_environment dev
export NO_MKDOCS_2_WARNING=1 # of its next major version, which constraints.txt holds off
exec .venv/bin/python -m mkdocs build --strict --config-file .mkdocs.yml "$@"
