#!/usr/bin/env bash
# Attack a classifier under a defense (--defense NAME), without and with Diffence. See --help. The code is in
# common/experiments/evaluate.py.
set -euo pipefail
folder="$(cd "$(dirname "$0")/.." && pwd)"
source "$folder/../environment.sh"
exec "$PYTHON" "$folder/evaluate_MIAs/evaluate_mia.py" "$@"
