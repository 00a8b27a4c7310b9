#!/usr/bin/env bash
# Lint, types, the layers of common/ and every test. Sets up its environment where needed (environment.sh). Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")"
EXTRA=test source environment.sh
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
"$PYTHON" -c 'from importlinter.cli import lint_imports_command as check; check()' # lint-imports, wherever it is installed
# Two processes with one thread each: threads that wait for one another spin, and models this small gain nothing from them.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
