#!/usr/bin/env bash
# The whole pipeline, from audio to songs, as jobs that wait for one another. Run it on the login node:
#
#   SONGS=/data/music REQUESTS=songs.yaml slurm/pipeline.sh
#   DRY_RUN=1 slurm/pipeline.sh                                       # only show what would be submitted
#   slurm/pipeline.sh --dry-run                                       # and what each script would start (see cluster.sh)
#   LEVELS=top PRESET=jukebox_5b_spectrum slurm/pipeline.sh           # no upsamplers: songs from the top alone
#   SBATCH_ARGS="--nodes=2 --ntasks-per-node=1" PROFILE=cpu PRESET=tiny slurm/pipeline.sh
#
#   songs -> vqvae -> codes -> codes' index -+-> top_prior ---------+-> sample
#                                            +-> middle_upsampler --+
#                                            +-> bottom_upsampler --+-> distill (DISTILL=1: top, middle, bottom)
#
# Costs   the sum of its stages: 450,000 V100-hours at Jukebox's size, four to five weeks, most of it the top prior.
# Expect  one line a job. A stage that trains is a chain of jobs; the next waits for the end of the whole chain (afterany),
#         then looks for its DONE. When a person is needed the chain is held, and so everything after it waits too.
set -euo pipefail
cd "$(dirname "$0")/.."
exec 3>&1                                    # where dry runs print, for stdout is a job's number
[ "${1:-}" = --dry-run ] && in_full=1 && DRY_RUN=1 || in_full=

# submit NAME DEPENDENCY [OPTIONS OF SBATCH...]: prints the job's number.
submit() {
    local name=$1 after=$2
    shift 2
    # shellcheck disable=SC2206
    local command=(sbatch --parsable ${after:+--dependency=$after} ${SBATCH_ARGS:-} "$@" "slurm/$name.sh")
    echo "${command[*]}" >&2
    # shellcheck disable=SC2086
    [ -z "$in_full" ] || IN_PIPELINE=1 bash "slurm/$name.sh" --dry-run ${SBATCH_ARGS:-} "$@" >&3 || exit
    if [ -n "${DRY_RUN:-}" ]; then echo "<$name>"; else "${command[@]}" | cut -d";" -f1; fi
}

songs=$(submit songs "")
vqvae=$(submit vqvae "afterok:$songs")
codes=$(submit codes "afterany:$vqvae" ${CODES_ARRAY:+--array=$CODES_ARRAY})
index=$(submit codes "afterok:$codes" --array=0)
top=$(submit top_prior "afterok:$index")
middle="" bottom=""
if [ "${LEVELS:-all}" != top ]; then
    middle=$(submit middle_upsampler "afterok:$index")
    bottom=$(submit bottom_upsampler "afterok:$index")
fi
if [ -n "${DISTILL:-}" ]; then
    LEVEL=top submit distill "afterany:$top" --job-name=megajukebox-distill_top >/dev/null
    [ -z "$middle" ] || LEVEL=middle submit distill "afterany:$middle" --job-name=megajukebox-distill_middle >/dev/null
    [ -z "$bottom" ] || LEVEL=bottom submit distill "afterany:$bottom" --job-name=megajukebox-distill_bottom >/dev/null
fi
submit sample "afterany:$top${middle:+:$middle}${bottom:+:$bottom}" >/dev/null
echo "songs $songs, vqvae $vqvae, codes $codes, index $index, top $top${middle:+, middle $middle}${bottom:+, bottom $bottom}" >&2
