# shellcheck shell=bash
# This cluster's facts, and how a stage is started and kept running. Every script here reads it; change it once for your site.
# Each value may also be set when submitting:  PROFILE=hopper RUNS=/scratch/runs sbatch slurm/top_prior.sh
#
# Every script of this folder can say what it would start, and starts nothing then: every rank's place, environment,
# ds_config, batch, memory and ports, and with 93 what would fail.
#   slurm/top_prior.sh --dry-run --nodes=34       # anywhere, also without SLURM; options as for sbatch
#   DRY_RUN=1 sbatch slurm/top_prior.sh           # in a job, with its nodes

PROFILE=${PROFILE:-v100}                     # kind of GPU: a name in megajukebox/profiles (v100, a100, hopper, cpu), or a YAML file
PRESET=${PRESET:-jukebox_5b_lyrics}          # a name in megajukebox/presets, or a YAML file
SONGS=${SONGS:-songs}                        # audio, lyrics, metadata: a folder or a manifest
SHARDS=${SHARDS:-shards}                     # SHARDS/songs and SHARDS/codes; better on the fast file system. Several are blended: "a:3 b:1"
RUNS=${RUNS:-runs}                           # RUNS/vqvae, RUNS/top_prior, ...: seen by all nodes under the same path
VENV=${VENV:-.venv}                          # where `make install` put Python; on a login node: make install TORCH_BACKEND=cu126 (V100), cu130
SETTINGS=${SETTINGS:-}                       # further preset settings: "training.top_prior.checkpointing.every=200 ..."
STANDBY=${STANDBY-1}                         # a warm process on each node halves the time of a restart; empty: none
PREFLIGHT=${PREFLIGHT-1}                     # the doctor looks at every node before ranks train on it; empty: it does not
NODES=${NODES:-}                             # train on so many nodes; what the job has beyond them is spare (sbatch --no-kill)

DRY_RUN=${DRY_RUN:-} MISSING=
[ "${1:-}" != --dry-run ] || { DRY_RUN=1; shift; }

shopt -s extglob
set -ufo pipefail   # -f: a `*` in SETTINGS, which is taken apart at its spaces, names no files
bin=$(realpath "$VENV")/bin
export PATH="$bin:$PATH" OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
if [ -n "$DRY_RUN" ] && [ -z "${SLURM_JOB_ID:-}" ]; then   # as if this script had been submitted with these options
    header=$(python -m megajukebox.resilience.sbatch_header "$0" "$@") || exit 93
    eval "$header"
fi
# Since SLURM 22.05 srun does not read SLURM_CPUS_PER_TASK by itself: the readers of data would share one core.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# A compiler that is killed leaves a lock in this folder that later starts wait for: so every job has its own. What lies
# there is loaded into every rank: nobody else may make it first. On the other nodes the ranks make it, for themselves alone.
TORCH_EXTENSIONS_DIR=$(mktemp "-d${DRY_RUN:+u}" "${TMPDIR:-/tmp}/torch_extensions.XXXXXXXXXXXX") || exit 93
export TORCH_EXTENSIONS_DIR
# Python imports nothing from the folder that a job is submitted in.
export PYTHONSAFEPATH=1
export NCCL_ASYNC_ERROR_HANDLING=1 TORCH_NCCL_ASYNC_ERROR_HANDLING=3
# The last collectives of every rank are kept, and written when it hangs: docs/RUNBOOK.md. 2000 are several steps of ZeRO-3.
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000} TORCH_NCCL_TRACE_BUFFER_SIZE=${TORCH_NCCL_TRACE_BUFFER_SIZE:-2000}
export TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}
# What follows from the kind of GPU: its environment, and three facts for the functions below.
# shellcheck disable=SC2034  # sample.sh reads the precision
PROFILE_DS_CONFIG='' PROFILE_SAMPLING_PRECISION='' PROFILE_GPUS_PER_NODE=0
profile=$(python -m megajukebox.training.planner.profiles "$PROFILE") || exit 93
eval "$profile"
if [ "$PROFILE_GPUS_PER_NODE" -gt 0 ] && [ "${SLURM_NTASKS_PER_NODE:-1}" -gt "$PROFILE_GPUS_PER_NODE" ]; then
    echo "PROFILE $PROFILE has $PROFILE_GPUS_PER_NODE GPUs a node and the job $SLURM_NTASKS_PER_NODE tasks;" \
        "sbatch --ntasks-per-node=$PROFILE_GPUS_PER_NODE --gres=gpu:$PROFILE_GPUS_PER_NODE" >&2
    exit 93
fi

# need FILE WHAT: the stage before must have finished; a job that starts anyway would only burn its nodes.
need() {
    [ ! -e "$1" ] || return 0
    MISSING=${MISSING:-"$SLURM_JOB_NAME: $1 is missing: $2 has not finished"}
    [ -n "$DRY_RUN" ] || { echo "$MISSING" >&2; exit 93; }
}

# need_shards KIND WHAT: every set of SHARDS must have finished.
need_shards() {
    local set
    for set in $SHARDS; do
        case $set in *://*) continue ;; esac   # behind a URL: training says what is missing
        need "${set%:+([0-9.])}/$1/index.json" "$2"
    done
}

# data_of KIND: --data of every set of SHARDS, its weight behind it: "a:3 b" become --data a/songs:3 --data b/songs.
data_of() {
    local set folder
    for set in $SHARDS; do
        folder=${set%:+([0-9.])}
        printf '%s\n' --data "$folder/$1${set#"$folder"}"
    done
}

# one_set: stop where several are named and a script makes or reads a single one.
one_set() {
    case $SHARDS in
    *" "*) echo "$SLURM_JOB_NAME: SHARDS names several sets; submit it for each: SHARDS=a sbatch ..." >&2; exit 93 ;;
    esac
}

# dry_run [OPTION...] OUT -- COMMAND...: print what COMMAND would start, and exit; with 93 if something is missing.
dry_run() {
    megajukebox supervise --dry-run --profile "$PROFILE" "$@" || exit
    # In slurm/pipeline.sh an earlier job makes it.
    [ -z "$MISSING" ] || [ -n "${IN_PIPELINE:-}" ] || { echo "$MISSING" >&2; exit 93; }
    exit 0
}

# ds_option RECIPE: a recipe of ds_configs/ with this kind of GPU. On CPUs the preset's own ds_config is used.
ds_option() {
    [ -z "$PROFILE_DS_CONFIG" ] || echo "--ds-config ${DS_CONFIG:-$1@$PROFILE_DS_CONFIG}"
}

# start OUT COMMAND...: run COMMAND, an srun that writes into OUT.
start() {
    local out=$1
    shift
    [ -z "$DRY_RUN" ] || dry_run "$out" -- "$@"
    "$@"
}

# ranks OUT COMMAND...: one task a GPU, and if one of them dies the others follow at once.
ranks() {
    local out=$1
    shift
    start "$out" srun --kill-on-bad-exit=1 --label --unbuffered "$@"
}

# supervised [OPTION] RUN PROGRAM...: one task a GPU, kept going to its end, through faults, time limits and requeues.
supervised() {
    local options=(${PREFLIGHT:+--preflight} ${NODES:+--nodes "$NODES"})
    [ -n "$STANDBY" ] || options+=(--no-standby)
    [ "$1" = --several-runs ] && options+=("$1") && shift
    local run=$1
    shift
    local command=(srun --kill-on-bad-exit=1 --label --unbuffered "$@")
    [ -z "$DRY_RUN" ] || dry_run "${options[@]}" "$run" -- "${command[@]}"
    exec megajukebox supervise "${options[@]}" "$run" -- "${command[@]}"
}

# train_stage STAGE RECIPE KIND: train it to its end on the sets of SHARDS; KIND is songs, codes or notes.
train_stage() {
    local run=$RUNS/$1 data
    mapfile -t data < <(data_of "$3")
    # shellcheck disable=SC2046,SC2086
    supervised "$run" python "$(realpath megajukebox/train.py)" "$1" --preset "$PRESET" "${data[@]}" --out "$run" \
        $(ds_option "$2") $SETTINGS
}

# Where the tasks of a plain srun meet: at a port that nobody can reckon. supervise draws another for each attempt.
if [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    MASTER_ADDR=$(scontrol show node "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    MASTER_PORT=$((20000 + $(od -An -N4 -tu4 /dev/urandom) % 12000))
    export MASTER_ADDR MASTER_PORT
fi
