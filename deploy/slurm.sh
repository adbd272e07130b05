#!/usr/bin/env bash
#SBATCH --job-name=morel
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# A Ray cluster on the nodes of one Slurm job, for one command of `morel`:
#
#   sbatch deploy/slurm.sh tune demo name=demo storage_path=/shared/runs tracking.uri=http://mlflow:5000
#
# The script's exit code is the command's. Two minutes before the time is up, or when the job is
# cancelled, the command gets SIGTERM and saves itself; submitted again, it goes on. All nodes see
# the folder that it is submitted from, with the virtual environment in .venv, and the storage path.
set -euo pipefail
bin=${MOREL_BIN:-$PWD/.venv/bin}
export PATH=$bin:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Only who has this job's token may speak to its Ray. It is handed on as a file, never on a
# command line, which other users of the nodes could read.
umask 077
export RAY_AUTH_TOKEN_PATH=$PWD/.ray-token-$SLURM_JOB_ID
python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 20000))  # jobs that share a node differ
address=$head:$port
cpus=${SLURM_CPUS_PER_TASK:-1} gpus=${SLURM_GPUS_ON_NODE:-0}
folder=/tmp/ray-$SLURM_JOB_ID

started=()
finish() {
  kill "${started[@]}" 2> /dev/null || true
  rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap finish EXIT

# The drivers of trials sit on the first node, and ask for `control`, not for a CPU.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --block --port="$port" --dashboard-host=127.0.0.1 --dashboard-port=0 \
  --num-cpus="$cpus" --num-gpus="$gpus" --resources='{"control": 64}' --temp-dir="$folder" &
started+=($!)
for node in "${nodes[@]:1}"; do
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" \
    ray start --block --address="$address" --num-cpus="$cpus" --num-gpus="$gpus" &
  started+=($!)
done

export RAY_ADDRESS=$address
for _ in $(seq "${MOREL_WAIT_S:-120}"); do
  there=$(python -c 'import ray; ray.init(log_to_driver=False); print(len(ray.nodes()))' 2> /dev/null) || there=0
  [ "$there" -ge "${#nodes[@]}" ] && break
  sleep 1
done
if [ "$there" -lt "${#nodes[@]}" ]; then
  echo "morel: $there of ${#nodes[@]} nodes have joined the Ray at $address" >&2
  exit 1
fi

# In the background, so that a signal reaches this script while the command runs.
python -m orchestrator "$@" &
command=$!
signalled=yes
trap 'signalled=yes; kill -TERM "$command" 2> /dev/null' TERM INT
while [ -n "$signalled" ]; do  # a signal ends the wait, but not yet the command
  signalled= code=0
  wait "$command" || code=$?
done
exit "$code"
