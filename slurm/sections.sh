#!/usr/bin/env bash
# What sounds again in songs whose sections nobody wrote down: an array of CPU tasks, each its part of the song shards.
# Needed only by priors that are conditioned on sections or their memory; run it after songs.sh and before codes.sh.
#
#   sbatch slurm/sections.sh                                          # 64 parts
#   sbatch --array=0 slurm/sections.sh                                # one task: what is missing
#
# Costs   64 x 8 cores for hours: some seconds a song and core.
# Expect  SHARDS/songs/*.returns.json, one for each song shard. Killed? Submit it again: finished shards are kept.
#SBATCH --job-name=megajukebox-sections
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=8
#SBATCH --array=0-63 --time=24:00:00 --requeue --open-mode=append
#SBATCH --output=%x-%A_%a.log
cd "${SLURM_SUBMIT_DIR:-.}" && source slurm/cluster.sh || exit 93
one_set

need "$SHARDS/songs/index.json" "slurm/songs.sh"
[ "${SLURM_ARRAY_TASK_COUNT:-1}" = 1 ] && part=() || part=(--part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT")
start "$SHARDS/songs" srun --nodes=1 --ntasks=1 megajukebox sections "$SHARDS/songs" "${part[@]}"
