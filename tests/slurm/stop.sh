#!/usr/bin/env bash
# End the Slurm that start.sh began in FOLDER, with its jobs.
#   bash tests/slurm/stop.sh FOLDER
set -euo pipefail
folder="$(cd "$1" && pwd)"
export SLURM_CONF="$folder/slurm.conf"
scancel --user="$(id -un)" || true
for _ in $(seq 60); do
    if [ -z "$(squeue --noheader)" ]; then
        break
    fi
    sleep 0.5
done
for name in n1 n2 slurmctld munged; do
    if [ -f "$folder/$name.pid" ]; then
        kill "$(cat "$folder/$name.pid")" || true
    fi
done
