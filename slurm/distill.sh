#!/usr/bin/env bash
# One level's student on 128 GPUs: it learns to draw many codes at once from the prior that draws one at a time.
#
#   LEVEL=top sbatch slurm/distill.sh                                 # or middle, bottom
#   LEVEL=middle DISTILL_OPTIONS="--windows 20000 --order 0,1" sbatch slurm/distill.sh    # see distill --help
#
# Costs   16 nodes x 8 V100; not a stage of Jukebox's run, so its days are those of your preset's steps (megajukebox plan).
# Expect  RUNS/<level>_student/DONE; then sample draws that level with its student.
#
# A chain of jobs of a day each: 15 minutes before the limit it saves, and the next one goes on within seconds. Lost nodes,
# dead ranks, hangs, full disks: docs/reliability.md. Watch:  megajukebox watch RUNS
#SBATCH --job-name=megajukebox-distill
#SBATCH --nodes=16 --ntasks-per-node=8 --gres=gpu:8 --cpus-per-task=5 --exclusive
#SBATCH --array=1-20%1 --time=24:00:00 --signal=B:USR1@900 --requeue --open-mode=append
#SBATCH --output=%x-%A.log
cd "${SLURM_SUBMIT_DIR:-.}" && source slurm/cluster.sh || exit 93
one_set

LEVEL=${LEVEL:-top}
DISTILL_OPTIONS=${DISTILL_OPTIONS:-${LESSON:-}}    # further options of distill (LESSON in version 0.1)
case $LEVEL in
    top) teacher=$RUNS/top_prior ;;
    middle | bottom) teacher=$RUNS/${LEVEL}_upsampler ;;
    *) echo "LEVEL is $LEVEL; choose top, middle or bottom" >&2; exit 93 ;;
esac
need "$teacher/DONE" "the teacher's training"
run=$RUNS/${LEVEL}_student
# shellcheck disable=SC2046,SC2086
supervised --several-runs "$run" python "$(realpath megajukebox/distill.py)" "$LEVEL" --teacher "$teacher" --preset "$PRESET" \
    --data "$SHARDS/codes" --out "$run" $DISTILL_OPTIONS $(ds_option student) $SETTINGS
