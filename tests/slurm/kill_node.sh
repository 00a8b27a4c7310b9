#!/usr/bin/env bash
# Let a node of the Slurm that start.sh began in FOLDER die, with everything that runs on it, as if its power failed.
#   bash tests/slurm/kill_node.sh FOLDER n1 && slurmd -N n1 -f FOLDER/slurm.conf   # and it is switched on again
set -euo pipefail
folder="$1"
node="$2"
# The tasks have the node's name in their environment. Their parents, slurmstepd, do not.
tasks="$(grep -lsz "^SLURMD_NODENAME=$node\$" /proc/[0-9]*/environ | cut -d/ -f3 || true)"
steps="$(for task in $tasks; do ps -o ppid= -p "$task" || true; done | sort -u)"
steps="$(for step in $steps; do [ "$(cat "/proc/$step/comm" 2>/dev/null)" != slurmstepd ] || echo "$step"; done)"
dying="$(cat "$folder/$node.pid") $steps $tasks"
# All stop before the first is killed, so that none can report the death of another.
# shellcheck disable=SC2086
kill -STOP $dying 2>/dev/null || true
# shellcheck disable=SC2086
kill -KILL $dying 2>/dev/null || true
rm "$folder/$node.pid"
