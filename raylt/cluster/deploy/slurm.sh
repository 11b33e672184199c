#!/usr/bin/env bash
#SBATCH --job-name=raylt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# A Ray cluster inside a Slurm allocation, and a sweep on it. Submitted again by itself until the sweep is complete:
#
#     RAYLT_ROOT=/shared/raylt sbatch raylt/cluster/deploy/slurm.sh SPEC [--set K=V ...]
#
# with the environment that has raylt active. RAYLT_ROOT must be a folder that all nodes share. docs/slurm.md explains each line.
set -euo pipefail
: "${RAYLT_ROOT:?is not set: the store, a folder that all nodes share}" "${SLURM_JOB_ID:?is not set: submit this with sbatch}"

# Whoever reaches Ray's ports can run code as you, and other users' jobs can: only who knows the token gets an answer.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAYLT_ROOT RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

# The head is this node, the allocation's first; its port and folder are this job's alone.
host=${SLURMD_NODENAME:-$(hostname -s)}
address=$(getent ahostsv4 "$(hostname)" | awk 'NR == 1 { print $1 }')
head=$address:$((20000 + SLURM_JOB_ID % 20000))
per_node=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}")
if [ -n "${SLURM_GPUS_PER_NODE:-}" ]; then per_node+=(--num-gpus="${SLURM_GPUS_PER_NODE##*:}"); fi
ray start --head --node-ip-address="$address" --port="${head#*:}" --include-dashboard=false \
    --temp-dir="/tmp/raylt-$SLURM_JOB_ID" "${per_node[@]}"

# The other nodes. SIGTERM drains a worker, since it blocks.
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
    srun --nodes="$others" --ntasks="$others" --exclude="$host" \
        ray start --address="$head" --block "${per_node[@]}" &
fi

# Slurm tells this script alone (B:) two minutes before the time is up; the sweep's driver then leaves everything resumable.
raylt sweep "$@" --address "$head" &
sweep=$!
trap 'kill -TERM "$sweep"' TERM
while true; do
    code=0
    wait "$sweep" || code=$?
    kill -0 "$sweep" 2> /dev/null || break # a signal ends `wait` before the sweep has ended
done
if [ "$code" = 143 ]; then
    scontrol requeue "$SLURM_JOB_ID" # the same command resumes
fi
exit "$code" # Slurm ends what is left of the job's processes, Ray's among them: no `ray stop`, which would end other jobs' too
