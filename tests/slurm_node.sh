#!/usr/bin/env bash
# A Slurm of one node on this machine for as long as CMD runs: tests/slurm_node.sh CMD...
# Needs Debian's slurm-wlm and munge, root, and a machine that is in no cluster: jobs look for /etc/slurm/slurm.conf.
set -euo pipefail
conf=/etc/slurm/slurm.conf
[ ! -e $conf ] || { echo "slurm_node.sh: error: this machine has a $conf of its own" >&2; exit 1; }
folder=$(mktemp -d)
host=$(hostname -s)
pids=()
stop() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait || true
    rm -rf "$folder" $conf
}
trap stop EXIT

mkdir -p "$folder"/{state,spool,munge}
chmod 711 "$folder" && chmod 755 "$folder/munge"
dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
chmod 600 "$folder/munge/key"
socket=$folder/munge/socket
munged --foreground --force --key-file "$folder/munge/key" --socket "$socket" --pid-file "$folder/munge/pid" \
    --seed-file "$folder/munge/seed" --log-file "$folder/munge/log" 2>/dev/null & pids+=($!)

cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$socket
CryptoType=crypto/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MinJobAge=600
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=2000
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
mkdir -p /etc/slurm
ln -s "$folder/slurm.conf" $conf
for _ in $(seq 50); do [ -S "$socket" ] && break; sleep 0.1; done
slurmctld -D >"$folder/slurmctld.log" 2>&1 & pids+=($!)
slurmd -D >"$folder/slurmd.log" 2>&1 & pids+=($!)
for _ in $(seq 100); do
    [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && break
    sleep 0.3
done
[ "$(sinfo -h -o %T)" = idle ] || { tail -n 20 "$folder"/*.log >&2; exit 1; }
"$@"
