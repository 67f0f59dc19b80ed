#!/usr/bin/env bash
# The VQ-VAE on 256 GPUs, data parallel: songs become codes of three levels.
#
#   sbatch slurm/vqvae.sh
#   PROFILE=hopper sbatch --nodes=4 slurm/vqvae.sh
#
# Costs   32 nodes x 8 V100 x 3 days = 18,400 GPU-hours in Jukebox's run (2 M parameters, 1.2 M songs).
# Expect  RUNS/vqvae/DONE and model.safetensors; spectral convergence falling in metrics.jsonl; codebook usage well above a half.
#
# A chain of jobs of a day each: 15 minutes before the limit it saves, and the next one goes on within seconds. Lost nodes,
# dead ranks, hangs, full disks: docs/reliability.md. Watch:  megajukebox watch RUNS
#SBATCH --job-name=megajukebox-vqvae
#SBATCH --nodes=32 --ntasks-per-node=8 --gres=gpu:8 --cpus-per-task=5 --exclusive
#SBATCH --array=1-20%1 --time=24:00:00 --signal=B:USR1@900 --requeue --open-mode=append
#SBATCH --output=%x-%A.log
cd "${SLURM_SUBMIT_DIR:-.}" && source slurm/cluster.sh || exit 93

need_shards songs "slurm/songs.sh"
train_stage vqvae vqvae songs
