#!/usr/bin/env bash
# A real Slurm on this machine: a controller and two nodes of one core each, n1 and n2, with everything that they write in FOLDER.
#   bash tests/slurm/start.sh FOLDER && export SLURM_CONF=FOLDER/slurm.conf && sinfo
# It needs root and Debian's packages slurm-wlm and munge. stop.sh ends it.
set -euo pipefail
folder="$(mkdir -p "$1" && cd "$1" && pwd)"
host="$(hostname -s)"
export SLURM_CONF="$folder/slurm.conf"
mkdir -p "$folder/state"
# cred_expire is also how long a requeued job waits before it starts again.
cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=17000
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait=5
ReturnToService=2
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=1 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
mungekey --create --force --keyfile="$folder/munge.key"
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" 2>>"$folder/munged.log"
slurmctld -f "$SLURM_CONF"
for node in n1 n2; do
    slurmd -N "$node" -f "$SLURM_CONF"
done
for _ in $(seq 60); do
    if [ "$(sinfo --noheader --states=idle --format=%D)" = 2 ]; then
        exit 0
    fi
    sleep 0.5
done
echo "error: the nodes did not come up: see $folder/slurmctld.log." >&2
exit 1
