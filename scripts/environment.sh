# Sourced by the other scripts: makes .venv and installs what they need, once.
# PYTHON chooses the interpreter; PIP_* variables are respected.

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "kdcache needs Python 3.11 or newer; set PYTHON to one." >&2
  return 1
}

# ensure_environment EXTRA: .venv with this checkout and its extra, as tested (constraints.txt).
ensure_environment() {
  local extra=$1 stamp wanted python
  stamp=.venv/installed-$extra
  wanted=$(cat pyproject.toml constraints.txt scripts/environment.sh | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    echo "Making .venv with $("$python" --version) ..."
    "$python" -m venv .venv
  fi
  echo "Installing kdcache[$extra] into .venv (minutes on the first run: torch is large) ..."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".[$extra]"
  echo "$wanted" >"$stamp"
}
