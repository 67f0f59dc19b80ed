#!/usr/bin/env bash
# Songs from the trained jukebox: requests are dealt out to the GPUs of one node.
#
#   REQUESTS=songs.yaml OUT=samples sbatch slurm/sample.sh
#   REQUESTS=songs.yaml sbatch --nodes=4 slurm/sample.sh              # more songs at once
#   LEVELS=top REQUESTS=songs.yaml sbatch slurm/sample.sh             # from the top alone: a top of spectra is a song
#
# Costs   depends on the songs; benchmarks/results says what one took where it was measured.
# Expect  OUT/*.wav *.json *.lrc. Killed? Submit it again: songs that are there are not made again.
#SBATCH --job-name=megajukebox-sample
#SBATCH --nodes=1 --ntasks-per-node=8 --gres=gpu:8 --cpus-per-task=5
#SBATCH --time=24:00:00 --requeue --open-mode=append
#SBATCH --output=%x-%j.log
cd "${SLURM_SUBMIT_DIR:-.}" && source slurm/cluster.sh || exit 93

stages="vqvae top_prior bottom_upsampler"
[ "${LEVELS:-all}" != top ] || stages="vqvae top_prior"
for stage in $stages; do need "$RUNS/$stage/model.json" "slurm/$stage.sh"; done
ranks "${OUT:-samples}" megajukebox sample "$RUNS" --requests "${REQUESTS:-songs.yaml}" --out "${OUT:-samples}" --precision "${PRECISION:-$PROFILE_SAMPLING_PRECISION}" ${LEVELS:+--levels "$LEVELS"}
