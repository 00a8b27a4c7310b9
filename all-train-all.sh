#!/usr/bin/env bash
# Run everything behind a set of tables: partition, diffusion model, candidates, the training and the evaluation of every defense.
# Jobs whose products exist are skipped. The code is in common/launch.py. This prints a plan:
#   bash all-train-all.sh --datasets synthetic --profile small --dry-run
set -euo pipefail
cd "$(dirname "$0")"
source environment.sh
exec "$PYTHON" -m common.launch "$@"
