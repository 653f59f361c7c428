# shellcheck shell=bash
# Common code of the scripts in this folder. Each sources it from the folder where sbatch was called: the checkout.

if [[ -f .venv/bin/activate ]]; then
  # shellcheck source=/dev/null
  source .venv/bin/activate # otherwise the environment in which sbatch was called is used
fi

# The rendezvous of the ranks: the first node, and a port that depends on the job's id alone, so that it is the same after
# a requeue. Services use ports below 20000, outgoing connections those above 32767. Each rank reads its number from
# SLURM_*.
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS

gpus=${SLURM_GPUS_ON_NODE:-0}
tasks=${SLURM_NTASKS_PER_NODE:-$gpus}
if ((gpus > tasks)); then
  echo "note: $gpus GPUs on a node, but each of its $tasks task(s) is one rank and takes one GPU;" \
    "for all of them: sbatch --ntasks-per-node $gpus" >&2
fi

# on_ranks COMMAND...   runs one rank per task; returns the exit code of the ranks.
# Slurm signals the end of the time limit to this shell (#SBATCH --signal=B:...), not to the ranks, so USR1 is forwarded
# to them. TERM is forwarded as USR1, because srun would not forward TERM but end the step. `wait` returns after either.
on_ranks() {
  # srun no longer takes --cpus-per-task from the job. If a rank fails, srun ends the others, which would wait for it.
  srun --cpus-per-task="$OMP_NUM_THREADS" --kill-on-bad-exit=1 "$@" &
  step=$!
  # shellcheck disable=SC2034 # train.sbatch reads it
  told_to_end=no
  trap 'kill -USR1 "$step" || true' USR1
  trap 'told_to_end=yes; kill -USR1 "$step" || true' TERM
  while kill -0 "$step" 2> /dev/null; do
    wait "$step" || true
  done
  trap - USR1 TERM
  wait "$step"
}
