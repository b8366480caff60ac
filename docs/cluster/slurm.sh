#!/usr/bin/env bash
# A Ray cluster inside a SLURM job, and mixnas on it:
#
#     sbatch docs/cluster/slurm.sh sweep study.toml --runs /shared/runs
#
# What follows the script is mixnas' command; --address is added. The runs must lie where the first
# node can write, and stay when the job ends: a shared file system, or s3://... A job that runs out
# of time is interrupted two minutes before, queued again, and goes on where it was.
#SBATCH --job-name=mixnas
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:INT@120
# For GPUs add: --gpus-per-node=4, and to the command: --gpus-per-worker 0.5

set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: sbatch $0 search|sweep OPTIONS..." >&2
    exit 2
fi

# Whoever knows the token can run anything on the nodes: it is made anew for each job, and handed on
# by the environment, never written down.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN
export RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${nodes[0]}
step=(srun --nodes=1 --ntasks=1 --overlap --export=ALL)
host=$("${step[@]}" --nodelist="$first" hostname --ip-address)
host=${host%% *}
port=$((20000 + SLURM_JOB_ID % 20000))
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}

started=()
stop() {
    for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
    wait || true
}
trap stop EXIT

"${step[@]}" --nodelist="$first" ray start --head --block --disable-usage-stats \
    --node-ip-address="$host" --port="$port" --num-cpus="$cpus" --num-gpus="$gpus" \
    --include-dashboard=false &
started+=($!)
for _ in $(seq 60); do
    "${step[@]}" --nodelist="$first" ray health-check --address "$host:$port" 2>/dev/null && break
    sleep 1
done
for node in "${nodes[@]:1}"; do
    "${step[@]}" --nodelist="$node" ray start --block --disable-usage-stats \
        --address="$host:$port" --num-cpus="$cpus" --num-gpus="$gpus" &
    started+=($!)
done

"${step[@]}" --nodelist="$first" mixnas "$@" --address "$host:$port" &
search=$!
again=no
trap 'again=yes; kill -INT "$search" 2>/dev/null || true' INT
code=0
wait "$search" || code=$?
if [ "$again" = yes ]; then
    wait "$search" || true # the trap ended the first wait: mixnas is still writing
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
