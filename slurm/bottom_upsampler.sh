#!/usr/bin/env bash
# The bottom upsampler (1B) on 128 GPUs: middle codes become bottom codes, which are decoded to audio.
#
#   sbatch slurm/bottom_upsampler.sh
#
# Costs   16 nodes x 8 V100 x 2 weeks = 43,000 GPU-hours in Jukebox's run.
# Expect  RUNS/bottom_upsampler/DONE; it may train beside the other priors, for all only read codes.
#
# A chain of jobs of a day each: 15 minutes before the limit it saves, and the next one goes on within seconds. Lost nodes,
# dead ranks, hangs, full disks: docs/reliability.md. Watch:  megajukebox watch RUNS
#SBATCH --job-name=megajukebox-bottom_upsampler
#SBATCH --nodes=16 --ntasks-per-node=8 --gres=gpu:8 --cpus-per-task=5 --exclusive
#SBATCH --array=1-40%1 --time=24:00:00 --signal=B:USR1@900 --requeue --open-mode=append
#SBATCH --output=%x-%A.log
cd "${SLURM_SUBMIT_DIR:-.}" && source slurm/cluster.sh || exit 93

need_shards codes "slurm/codes.sh"
train_stage bottom_upsampler upsampler codes
