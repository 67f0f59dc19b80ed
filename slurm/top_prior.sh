#!/usr/bin/env bash
# The top prior (5B with lyrics) on 512 GPUs, ZeRO-3: the level that decides what is played and sung.
#
#   sbatch slurm/top_prior.sh
#   RECIPE=prior_pipeline sbatch slurm/top_prior.sh      # pipeline x data parallel instead of ZeRO-3
#
# Costs   64 nodes x 8 V100 x 4 weeks = 344,000 GPU-hours in Jukebox's run; and two spare nodes, which take the places of
#         lost or sick ones at once. Without spares: sbatch --nodes=64 slurm/top_prior.sh
# Expect  RUNS/top_prior/DONE; at 16 node failures per 1000 node-days about one every day: minutes lost each, nobody called.
#
# A chain of jobs of a day each: 15 minutes before the limit it saves, and the next one goes on within seconds. Lost nodes,
# dead ranks, hangs, full disks: docs/reliability.md. Watch:  megajukebox watch RUNS
#SBATCH --job-name=megajukebox-top_prior
#SBATCH --nodes=66 --no-kill --ntasks-per-node=8 --gres=gpu:8 --cpus-per-task=5 --exclusive
#SBATCH --array=1-60%1 --time=24:00:00 --signal=B:USR1@900 --requeue --open-mode=append
#SBATCH --output=%x-%A.log
cd "${SLURM_SUBMIT_DIR:-.}" && source slurm/cluster.sh || exit 93

NODES=${NODES:-64}
need_shards codes "slurm/codes.sh"
train_stage top_prior "${RECIPE:-${WAY:-prior_zero3}}" codes
