#!/usr/bin/env bash
# Code shards of song shards with the trained VQ-VAE: an array of tasks of one GPU, each its part of the shards.
#
#   sbatch slurm/codes.sh                                             # 64 parts, then:
#   sbatch --array=0 slurm/codes.sh                                   # one task: what is missing, and the index
#
# Costs   64 x 1 GPU for hours. (slurm/pipeline.sh submits both, the second after the first.)
# Expect  SHARDS/codes/*.tar, one for each song shard, and index.json. Killed? Submit it again: finished shards are kept.
#SBATCH --job-name=megajukebox-codes
#SBATCH --nodes=1 --ntasks-per-node=1 --gres=gpu:1 --cpus-per-task=5
#SBATCH --array=0-63 --time=24:00:00 --requeue --open-mode=append
#SBATCH --output=%x-%A_%a.log
cd "${SLURM_SUBMIT_DIR:-.}" && source slurm/cluster.sh || exit 93
one_set

need "$RUNS/vqvae/DONE" "slurm/vqvae.sh"
[ "${SLURM_ARRAY_TASK_COUNT:-1}" = 1 ] && part=() || part=(--part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT")
start "$SHARDS/codes" srun --nodes=1 --ntasks=1 megajukebox encode "$SHARDS/songs" --vqvae "$RUNS/vqvae" --out "$SHARDS/codes" "${part[@]}"
