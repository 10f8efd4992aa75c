#!/bin/sh
# Makes the virtual environment from the hash-locked list. System packages are added only as root and only where missing.
set -eu
cd "$(dirname "$0")/.."

need() { # command, Debian package
  command -v "$1" >/dev/null 2>&1 && return 0
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    [ -n "${APT_UPDATED:-}" ] || { apt-get update -qq; APT_UPDATED=1; }
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
  else
    echo "note: '$1' is missing (package $2); what needs it will say so" >&2
  fi
}

usable() { # a Python that is new enough and can make environments
  command -v "$1" >/dev/null 2>&1 || return 1
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

need ip iproute2
python=
for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
  if usable "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
  need "no-such-command-so-that-venv-is-installed" python3-venv
  usable python3 && python=python3
fi
[ -n "$python" ] || { echo "error: Python 3.11, 3.12 or 3.13 with venv is needed (Debian: apt-get install python3-venv)" >&2; exit 17; }

[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/build.lock
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
touch .venv/.installed
