#!/usr/bin/env bash
# The composer on 8 GPUs: a prior over events of written music (docs/notes.md).
#
#   megajukebox prepare-notes ~/midi --out shards/notes      # once, minutes on a login node
#   sbatch slurm/composer.sh                                 # the preset composer_large
#   PRESET=small sbatch --ntasks-per-node=1 --gres=gpu:1 slurm/composer.sh
#
# Costs   composer_large: 8 V100 for 1.1 days (by `megajukebox plan composer_large --stage composer`, not measured).
# Expect  RUNS/composer/DONE; then `megajukebox compose RUNS`.
#
# A chain of jobs of a day each: 15 minutes before the limit it saves, and the next one goes on within seconds.
#SBATCH --job-name=megajukebox-composer
#SBATCH --nodes=1 --ntasks-per-node=8 --gres=gpu:8 --cpus-per-task=5 --exclusive
#SBATCH --array=1-10%1 --time=24:00:00 --signal=B:USR1@900 --requeue --open-mode=append
#SBATCH --output=%x-%A.log
PRESET=${PRESET:-composer_large}
cd "${SLURM_SUBMIT_DIR:-.}" && source slurm/cluster.sh || exit 93

need_shards notes "megajukebox prepare-notes"
train_stage composer upsampler notes
