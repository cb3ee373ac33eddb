# Sourced by demo, test and bench: makes .venv with everything they need, once for each state of setup.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "maskmine: $1" >&2
  exit 2
}

find_python() {
  local name
  for name in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; then
      echo "$name"
      return
    fi
  done
  fail "Python 3.11, 3.12 or 3.13 is needed; install it, or name it: PYTHON=/path/to/python3 bash scripts/…"
}

wanted=$(cat setup.py pyproject.toml scripts/environment.sh | cksum | cut -d' ' -f1)
if [ ! -x .venv/bin/python ] || [ "$(cat .venv/maskmine-environment 2>/dev/null)" != "$wanted" ] ||
  [ ! -e maskmine/mining ]; then
  python=$(find_python)
  echo "maskmine: setting up .venv with $("$python" --version); a few minutes and about 7 GB, once" >&2
  [ -x .venv/bin/python ] || "$python" -m venv .venv 2>/dev/null ||
    fail "$python cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv"
  shown=--quiet
  [ ! -t 2 ] || shown=--progress-bar=on # on a terminal pip says what it downloads
  .venv/bin/python -m pip install "$shown" --disable-pip-version-check --editable '.[dev]' ||
    fail "the packages could not be installed (see above); check the network and run this again"
  echo "$wanted" >.venv/maskmine-environment
fi
export PYTHONDONTWRITEBYTECODE=1
