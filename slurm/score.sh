#!/usr/bin/env bash
# Scores of a run's newest weights, again and again while it trains: they show up on the run page, from RUN/scores.jsonl.
#
#   RUN=runs/top_prior REFERENCE=shards/codes sbatch slurm/score.sh
#   RUN=runs/vqvae REFERENCE=shards/songs EVERY=1 sbatch slurm/score.sh           # every hour
#   RUN=runs/vqvae REFERENCE=shards/songs GATE=before/report.json EVERY=0 sbatch slurm/score.sh    # once; fails if worse
#
# Costs   one GPU for minutes each time; beside the run, never within it: it only reads, and links the weights aside first.
# Expect  a line in RUN/scores.jsonl for each checkpoint met, the newest report in RUN/score/. It asks for its next job
#         itself and stops when the run has DONE.
#SBATCH --job-name=megajukebox-score
#SBATCH --nodes=1 --ntasks=1 --gres=gpu:1 --cpus-per-task=5
#SBATCH --time=4:00:00 --requeue --open-mode=append
#SBATCH --output=%x-%j.log
cd "${SLURM_SUBMIT_DIR:-.}" && source slurm/cluster.sh || exit 93

RUN=${RUN:-$RUNS/top_prior} EVERY=${EVERY:-6}                                     # hours; 0: only once
REFERENCE=${REFERENCE:-${AGAINST:-}}                                              # one or more, by spaces (AGAINST in version 0.1)
need "$RUN/model.json" "the run's first checkpoint"
[ -e "$RUN/DONE" ] && last=1 || last=                                             # seen before scoring: nothing comes after

options=()
if [ -z "$REFERENCE" ]; then   # the first set of SHARDS: evaluate takes one of a kind at a time
    first=${SHARDS%% *}
    REFERENCE=${first%:+([0-9.])}/codes
fi
for source in $REFERENCE; do options+=(--reference "$source"); done
[ -n "${GATE:-}" ] && options+=(--gate "$GATE")
start "$RUN/score" srun --ntasks=1 megajukebox evaluate "$RUN" "${options[@]}" --checkpoint newest --out "$RUN/score"
code=$?

if [ -z "$last" ] && [ "$EVERY" != 0 ]; then
    export RUN REFERENCE EVERY
    sbatch --begin="now+${EVERY}hours" "slurm/score.sh" || exit 75
fi
exit $code
