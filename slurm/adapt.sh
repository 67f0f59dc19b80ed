#!/usr/bin/env bash
# An adapter of your songs beside frozen priors, on one GPU.
#
#   DATA=shards/mine_codes OUT=adapters/mine ARTIST="My Band" sbatch slurm/adapt.sh
#   DATA=... OUT=... ADAPT="--base nf4 --rank 32 --levels all" RUNS=runs/openai sbatch slurm/adapt.sh
#
# Costs   1 GPU; `megajukebox plan PRESET --adapter rank=16 --gpu CARD` says how long (estimate, not measured).
# Expect  OUT/top_prior/adapter.safetensors, OUT/report.json. Stopped by the limit? Submit it again: it resumes.
#SBATCH --job-name=megajukebox-adapt
#SBATCH --nodes=1 --ntasks-per-node=1 --gres=gpu:1 --cpus-per-task=5
#SBATCH --time=24:00:00 --requeue --open-mode=append
#SBATCH --output=%x-%j.log
cd "${SLURM_SUBMIT_DIR:-.}" && source slurm/cluster.sh || exit 93

DATA=${DATA:-$SHARDS/mine} OUT=${OUT:-adapters/mine}
need "$DATA/index.json" "slurm/codes.sh"
need "$RUNS/top_prior/model.json" "slurm/top_prior.sh"
[ -z "$DRY_RUN" ] || { echo "would adapt $RUNS to $DATA on one GPU, into $OUT"; exit 0; }
# shellcheck disable=SC2086
exec python -m megajukebox adapt "$RUNS" --data "$DATA" --out "$OUT" ${ARTIST:+--artist "$ARTIST"} ${ADAPT:-} $SETTINGS
