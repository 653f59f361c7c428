# shellcheck shell=bash
# What the scripts beside this one share. Each sources it from the folder where sbatch was called: the checkout.

if [[ -f .venv/bin/activate ]]; then
  # shellcheck source=/dev/null
  source .venv/bin/activate # without one, the environment that sbatch was called in
fi

# Where the ranks meet: on the first node, at a port that is the job's own and the same after a requeue. Services lie
# below 20000, the ports of outgoing connections above 32767. Who is which rank they read from SLURM_* themselves.
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

# on_ranks COMMAND...   one rank a task; the exit code is the ranks'.
# Slurm tells this shell (#SBATCH --signal=B:...) and not the ranks that time is running out, so USR1 goes on to them.
# TERM does too, but as USR1: srun would not pass TERM on, it would end the step. `wait` returns at either.
on_ranks() {
  # srun no longer takes --cpus-per-task from the job. One rank that fails ends those that wait for it.
  srun --cpus-per-task="$OMP_NUM_THREADS" --kill-on-bad-exit=1 "$@" &
  step=$!
  # shellcheck disable=SC2034 # train.sbatch asks for it
  told_to_end=no
  trap 'kill -USR1 "$step" || true' USR1
  trap 'told_to_end=yes; kill -USR1 "$step" || true' TERM
  while kill -0 "$step" 2> /dev/null; do
    wait "$step" || true
  done
  trap - USR1 TERM
  wait "$step"
}
