#!/usr/bin/env bash
# Song shards of audio files: one node, all its cores; no GPU.
#
#   SONGS=/data/music sbatch slurm/songs.sh
#
# Costs   one node for hours: mostly decoding and FLAC, which grow with the cores.
# Expect  SHARDS/songs/index.json, and refused.jsonl with what could not be used and why. Killed? Submit it again: finished
#         shards are kept, and the result is the same to the byte.
#SBATCH --job-name=megajukebox-songs
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=40
#SBATCH --time=24:00:00 --requeue --open-mode=append
#SBATCH --output=%x-%j.log
cd "${SLURM_SUBMIT_DIR:-.}" && source slurm/cluster.sh || exit 93
one_set

start "$SHARDS/songs" srun --nodes=1 --ntasks=1 megajukebox prepare "$SONGS" --out "$SHARDS/songs" --preset "$PRESET" --processes "${PROCESSES:-$SRUN_CPUS_PER_TASK}"
