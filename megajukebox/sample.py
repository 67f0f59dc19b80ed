"""Sample songs from a trained jukebox: a folder with the runs vqvae, top_prior, middle_upsampler, bottom_upsampler.

    megajukebox sample runs/tiny --requests songs.yaml --out samples                            # one process
    deepspeed --num_gpus 2 megajukebox/sample.py runs/tiny --requests songs.yaml --out samples  # ranks share the requests
    megajukebox sample runs/tiny --artist "..." --genre "..." --lyrics words.txt --seconds 8 --seed 1 --out samples
    megajukebox sample runs/tiny --artist "..." temperature=0.9 guidance=2 'moods=[calm]'   # any setting of a request
    megajukebox sample runs/tiny --list-conditions                                  # which artists, genres ... it knows
    megajukebox sample runs/tiny --levels top                                       # the top's song, no upsampler
    megajukebox sample runs/tiny --sampler student --seconds 60                     # parallel students upsample
    megajukebox sample runs/tiny --adapter adapters/mine:0.8 --artist "My Band"     # your own style (docs/adapters.md)
    megajukebox sample runs/tiny --prompt demo.wav --keep-seconds 3 --seconds 10    # continues a recording
    megajukebox sample runs/tiny --infill samples/song.json --replace 2-3.5 --lyrics other.txt --name mended

Songs that are complete are not sampled again, interrupted ones resume: give the same command again. A request that
fails is reported, and the others are sampled. Every mode has its command in docs/sampling.md.
"""

import os
from pathlib import Path

import torch

from megajukebox.commands import reconstruct as reconstruct_command
from megajukebox.common.command_line import log_renamed, renamed_options, run_command
from megajukebox.common.device import check_precision, choose_device
from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.common.world import world
from megajukebox.data.adapters import parse_adapter
from megajukebox.resilience.exit_codes import EXIT_PREEMPTED
from megajukebox.sampling import options
from megajukebox.sampling.batch_job import SamplingRun
from megajukebox.sampling.jukebox import DecodingPolicy, Jukebox, SamplingInterrupted
from megajukebox.sampling.prior_run import print_conditions
from megajukebox.training.config import override


@renamed_options({"--way": "--decoding", "--names": "--list-conditions"})
def main(
    runs: options.Runs,
    settings: options.Settings = None,
    out: options.Out = Path("samples"),
    requests: options.Requests = None,
    artist: options.Artist = None,
    genre: options.Genre = None,
    lyrics: options.Lyrics = None,
    seconds: options.Seconds = None,
    seed: options.Seed = None,
    name: options.Name = None,
    variations: options.Variations = None,
    levels: options.Levels = None,
    prompt: options.Prompt = None,
    keep_seconds: options.KeepSeconds = None,
    upsample: options.Upsample = None,
    infill: options.Infill = None,
    replace: options.Replace = None,
    list_conditions: options.ListConditions = False,
    batch_size: options.BatchSize = 16,
    precision: options.PrecisionOption = options.Precision.float32,
    memory: options.Memory = None,
    exact: options.Exact = True,
    decoding: options.DecodingOption = "auto",
    int8: options.Int8 = False,
    sampler: options.Sampler = None,
    adapter: options.AdapterOption = None,
    adapter_anyway: options.AdapterAnyway = False,
    refiner: options.Refiner = None,
    refine: options.Refine = True,
    progress: options.Progress = None,
    local_rank: options.LocalRank = 0,
    reconstruct: options.OldReconstruct = None,
    count: options.OldCount = reconstruct_command.DEFAULT_SONGS,
    song: options.OldSong = None,
) -> None:
    """Sample songs: those of --requests, or the one that the options ask for.

    Exits with 1 if a request failed, with 85 if it was interrupted (give the same command again).
    """
    # One token's work is too small to share between threads: two were 20 times slower on a busy machine.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if reconstruct:
        log_renamed("option --reconstruct", f"megajukebox reconstruct RUNS --data {reconstruct}")
        reconstruct_command.main(runs, reconstruct, out, count, song, seconds or 10.0)
        return
    if list_conditions:
        print_conditions(runs / PRIOR_FOLDERS["top"])
        return
    asked = options.song_settings(name, artist, genre, lyrics, seconds, seed, variations)
    asked |= options.edit_settings(prompt, keep_seconds, upsample, infill, replace)
    for setting in settings or []:
        override(asked, setting)
    valid, refused = options.requests_from_options(requests, asked)
    here = world()
    device = choose_device(here.local_rank)
    dtype = getattr(torch, options.Precision(precision).value)
    check_precision(device, dtype)
    jukebox = Jukebox(
        runs,
        str(device),
        dtype,
        DecodingPolicy(exact, decoding, int8),
        students=sampler or (),
        refiners=options.refiner_runs(refiner, refine),
        levels=levels.split(",") if levels else (),
        adapters=[parse_adapter(text) for text in adapter or ()],
        any_base=adapter_anyway,
    )
    valid = [jukebox.adapters.applied(request) for request in valid]
    ranks = {"rank": here.rank, "ranks": here.size}
    run = SamplingRun(jukebox, valid, out, refused=refused, progress_file=progress, **ranks)
    run.fit_to_memory(batch_size, memory)
    try:
        all_complete = run.run_and_report()
    except SamplingInterrupted:
        raise SystemExit(EXIT_PREEMPTED) from None
    if not all_complete:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main, "sample")
