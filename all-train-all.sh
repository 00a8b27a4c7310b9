#!/usr/bin/env bash
# Everything behind a set of tables: partition, diffusion model, candidates, every defense and its evaluation, in dependency
# order, skipping what exists. The plan is in common/launch.py. Try: bash all-train-all.sh --datasets synthetic --profile small --dry-run
set -euo pipefail
cd "$(dirname "$0")"
source environment.sh
exec "$PYTHON" -m common.launch "$@"
