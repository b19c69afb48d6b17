#!/usr/bin/env bash
# One node's part of a job: srun starts it once on each node, with slurm/env.sh's settings in the environment.
#
#   node.sh SCRIPT [ARGUMENT...]
#
# It is DeepSpeed's launcher without ssh: Slurm has started a process on every node already.
set -euo pipefail

hostfile="$(mktemp)"
trap 'rm -f "$hostfile"' EXIT
# Slurm ends this node because another one failed, or because the job was cancelled: that is the job's status, and srun
# would report this node's 143 in its place, as it takes the highest.
trap 'exit 0' TERM
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$PROCESSES_PER_NODE/" >"$hostfile"

deepspeed --log_level warning --no_ssh --hostfile "$hostfile" --node_rank "$SLURM_NODEID" \
    --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" "$@"
