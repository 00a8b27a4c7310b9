#!/usr/bin/env bash
# Lint, types and every test. Sets up its environment where needed (see environment.sh). Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")"
EXTRA=test source environment.sh
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
# Threads that wait for one another spin on a small machine: one is fastest for models this small.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest "$@"
