# Sourced by the other scripts: enters the repository and its .venv, with `extras` installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: python: 3.11 or newer is needed; install it from python.org" >&2
  return 1
}

enter_venv() {  # enter_venv EXTRAS: make .venv if need be, and install when pyproject.toml changed
  local python stamp wanted
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    echo "Making .venv with $("$python" --version) ..." >&2
    "$python" -m venv .venv
  fi
  stamp=.venv/installed-$1
  wanted="$(cksum < pyproject.toml) $PWD"
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "Installing mlx-ferry${1:+ with its extra '$1'} ..." >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}"
    echo "$wanted" > "$stamp"
  fi
  PATH="$PWD/.venv/bin:$PATH"
}
