#!/usr/bin/env bash
# A refiner of one level on 8 GPUs, data parallel: less noise from a frozen decoder, whatever the codes.
#
#   LEVEL=bottom sbatch slurm/refiner.sh                      # or top, middle: three jobs side by side
#   LEVEL=bottom RUNS=runs/openai sbatch slurm/refiner.sh     # imported weights too; their licence comes along
#
# Costs   8 GPUs, hours (estimate, not measured): 50,000 steps of 20 M parameters; the VQ-VAE itself took 18,400 GPU-hours.
# Expect  RUNS/refiner_LEVEL/DONE and model.safetensors; log_magnitude_db in metrics.jsonl below that of the decoder.
#
# Codes and priors stay as they are. `megajukebox sample RUNS` and `reconstruct` find it there.
#SBATCH --job-name=megajukebox-refiner
#SBATCH --nodes=1 --ntasks-per-node=8 --gres=gpu:8 --cpus-per-task=5 --exclusive
#SBATCH --time=24:00:00 --signal=B:USR1@900 --requeue --open-mode=append
#SBATCH --output=%x-%j.log
cd "${SLURM_SUBMIT_DIR:-.}" && source slurm/cluster.sh || exit 93

LEVEL=${LEVEL:-bottom}
need_shards songs "slurm/songs.sh"
need "$RUNS/vqvae/model.json" "slurm/vqvae.sh"
mapfile -t data < <(data_of songs)
# shellcheck disable=SC2046,SC2086
supervised "$RUNS/refiner_$LEVEL" python "$(realpath megajukebox/train.py)" refiner --preset "$PRESET" \
    "${data[@]}" --vqvae "$RUNS/vqvae" --out "$RUNS/refiner_$LEVEL" $(ds_option refiner) $SETTINGS "refiner.level=$LEVEL"
