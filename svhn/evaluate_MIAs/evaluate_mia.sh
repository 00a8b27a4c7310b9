#!/usr/bin/env bash
# Every attack on a defense (--defense NAME), without and with Diffence. All logic is in common/experiments/evaluate.py. See --help.
set -euo pipefail
folder="$(cd "$(dirname "$0")/.." && pwd)"
source "$folder/../environment.sh"
exec "$PYTHON" "$folder/evaluate_MIAs/evaluate_mia.py" "$@"
