#!/bin/sh
# Regenerates the two hash-locked requirement lists: what an enclave loads, and what a developer installs.
set -eu
cd "$(dirname "$0")/.."
uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
  --extra flower -o requirements/enclave.lock pyproject.toml
uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
  --extra cli --extra flower --extra dev -c requirements/enclave.lock -o requirements/dev.lock pyproject.toml
printf 'setuptools>=77,<83\nwheel\n' | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
  --no-header -c requirements/dev.lock -o requirements/build.lock -
