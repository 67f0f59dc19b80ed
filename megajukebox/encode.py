"""Turn song shards into code shards with a trained VQ-VAE: the priors train on these.

    megajukebox encode shards/songs --vqvae runs/tiny/vqvae --out shards/codes                    # one process
    deepspeed --num_gpus 2 megajukebox/encode.py shards/songs --vqvae runs/tiny/vqvae --out
    shards/codes
    megajukebox encode shards/songs --vqvae runs/vqvae --out shards/codes --part 3/64             # task 3 of an array

One song shard makes one code shard, whoever makes it, so the result does not depend on the split.
Killed? Run it again: finished shards are kept. After an array job (--part) a last run without
--part writes the index.
"""

import io
import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.distributed as dist
import typer

from megajukebox.common.command_line import run_command
from megajukebox.common.device import choose_device, device_name
from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.progress import track
from megajukebox.common.provenance import made_by
from megajukebox.common.untrusted_files import read_given
from megajukebox.common.world import world
from megajukebox.data.audio import read_channels_slice
from megajukebox.data.shards.build_index import write_index
from megajukebox.data.shards.index import MAX_LYRICS_MODEL_BYTES
from megajukebox.data.shards.remote import DEFAULT_CACHE, ShardUnavailable
from megajukebox.data.shards.remote_options import (
    RedirectHostOption,
    TokenFileOption,
    remote_config,
)
from megajukebox.data.shards.shard_set import ShardSample, ShardSet, finished_shard, write_shard
from megajukebox.models.chunked_codec import encode_long
from megajukebox.models.vqvae import VQVAE, load_vqvae
from megajukebox.records.found_returns import read_returns

MAX_SECONDS = 6 * 3600  # of a song: it is decoded in memory at once
BARRIER_TIMEOUT = timedelta(days=7)


def main(
    songs: Annotated[str, typer.Argument(help="The folder or URL of song shards.")],
    vqvae: Annotated[Path, typer.Option(help="The run (or import) of the VQ-VAE.")],
    out: Annotated[Path, typer.Option(help="The folder for the code shards.")],
    mix: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Mono is mix x left + (1 - mix) x right; a stereo VQ-VAE has both."
        ),
    ] = 0.5,
    chunk_seconds: Annotated[
        float, typer.Option(min=0.1, help="Audio encoded at once; bounds the memory.")
    ] = 20.0,
    part: Annotated[
        str | None, typer.Option(help="i/n: only every n-th shard, from the i-th on (0-based).")
    ] = None,
    cache: Annotated[
        Path, typer.Option(help="Where shards behind a URL are kept.")
    ] = DEFAULT_CACHE,
    allow_pipe: Annotated[
        bool, typer.Option("--allow-pipe", help="Allow URLs that run commands.")
    ] = False,
    data_token_file: TokenFileOption = None,
    redirect_host: RedirectHostOption = None,
    local_rank: Annotated[
        int, typer.Option("--local_rank", hidden=True, help="The deepspeed launcher gives it.")
    ] = 0,
) -> None:
    """Encode song shards. Restartable; the result does not depend on how the work is split."""
    try:
        remote = remote_config(
            songs, data_token_file, redirect_host, cache=cache, lost="stop", allow_pipe=allow_pipe
        )
        shards = ShardSet(songs, remote)
        encode(shards, vqvae, out, mix, chunk_seconds, part)
    except ShardUnavailable as error:
        raise SystemExit(f"encode: {error}") from error


def encode(
    songs: ShardSet, run: Path, out: Path, mix: float, chunk_seconds: float, part: str | None
) -> None:
    """Write this process's share of the code shards, and the index once all are there."""
    here = world()
    first = here.rank
    stride = here.size
    if part:
        i, _, n = part.partition("/")
        if not (i.isdigit() and n.isdigit() and int(i) < int(n)):
            raise UserError(f"part {part!r} is not of the form i/n with 0 <= i < n")
        first = int(i)
        stride = int(n)
    device = choose_device(here.local_rank)
    if songs.index["kind"] != "songs":
        raise UserError(f"{songs.folder} holds {songs.index['kind']}; give song shards")
    model, facts = load_vqvae(run, songs.index["sample_rate"], device)
    make_folder(out)
    origin = {"vqvae": facts["fingerprint"], "source": songs.fingerprint, "mix": mix}
    numbers = range(first, len(songs.index["shards"]), stride)
    for number in track(numbers, "shards", enabled=here.rank == 0):
        encode_shard(model, songs, number, out, origin, chunk_seconds)
    if part is None:
        # After a restart one process may have nothing left to do and another hours: torch's own
        # limit, half an hour, would end both. It fails with the others if one dies.
        if here.size > 1:
            dist.init_process_group("gloo", timeout=BARRIER_TIMEOUT)
            dist.barrier()
            dist.destroy_process_group()
        if here.rank == 0:
            write_code_index(songs, model, facts, out, origin)


def shard_name(number: int) -> str:
    return f"codes-{number:06d}.tar"


def encode_shard(
    model: VQVAE,
    songs: ShardSet,
    number: int,
    out: Path,
    origin: dict[str, Any],
    chunk_seconds: float,
) -> None:
    """Shard `number`, unless it is finished and of the same origin.

    What `megajukebox sections` found in its songs goes into their JSON.
    """
    found = read_returns(songs.folder, songs.index["shards"][number])
    if found:
        origin = {**origin, "returns": found.digest}
    done = finished_shard(out / shard_name(number))
    if done and done["notes"]["origin"] == origin:
        return
    refused: dict[str, str] = {}
    returns = found.songs if found else {}
    samples = encoded_songs(model, songs, number, origin["mix"], chunk_seconds, refused, returns)
    device = device_name(next(model.parameters()).device)
    notes = {"origin": origin, "refused": refused, "device": device}
    write_shard(out / shard_name(number), samples, notes=notes)


def encoded_songs(
    model: VQVAE,
    songs: ShardSet,
    number: int,
    mix: float,
    chunk_seconds: float,
    refused: dict[str, str],
    returns: Mapping[str, list[list[float]]],
) -> Iterator[ShardSample]:
    """The songs of one shard as codes; one that cannot be read is left out, its reason in
    `refused`. `returns` are those that were found in songs without sections, by their keys.
    """
    shard = songs.index["shards"][number]
    for song in range(shard["first"], shard["first"] + shard["songs"]):
        try:
            found = returns.get(songs.key(song), [])
            yield encode_song(model, songs, song, mix, chunk_seconds, found)
        except BadSampleError as error:
            # only the song's own faults: a disk or server that fails ends the run
            refused[songs.key(song)] = str(error)


def encode_song(
    model: VQVAE,
    songs: ShardSet,
    song: int,
    mix: float,
    chunk_seconds: float,
    returns: list[list[float]],
) -> ShardSample:
    """The codes of one song at all levels. Raises BadSampleError if it cannot be read."""
    facts = songs.read_facts(song)
    if returns and not facts.get("returns"):
        facts["returns"] = returns
    frames = int(songs.songs[song]["frames"])
    rate = songs.index["sample_rate"]
    if frames > MAX_SECONDS * rate:
        hours = MAX_SECONDS / 3600
        raise BadSampleError(
            "too_large", f"{songs.key(song)} claims {frames} frames, over {hours:g} hours"
        )
    audio = io.BytesIO(songs.read_member(song, "audio"))
    x = torch.from_numpy(read_channels_slice(audio, 0, frames, rate, model.config.channels, mix))
    device = next(model.parameters()).device
    members = {"json": json.dumps(facts | {"mix": mix}, ensure_ascii=False).encode()}
    for level in reversed(model.config.levels):
        codes = encode_long(model, x.to(device), level, chunk_seconds)
        file = io.BytesIO()
        np.save(file, codes.cpu().numpy().astype("<u2"), allow_pickle=False)
        members[f"{level}.npy"] = file.getvalue()
    if songs.has(song, "lyrics"):
        members[songs.member_extension(song, "lyrics")] = songs.read_member(song, "lyrics")
    return ShardSample(songs.key(song), frames, members)


def write_code_index(
    songs: ShardSet, model: VQVAE, facts: dict[str, Any], out: Path, origin: dict[str, Any]
) -> None:
    """Write songs.npy and index.json of the code set, with the lyrics model of the songs."""
    config = model.config
    lyrics = songs.index["lyrics_model"]
    if lyrics:
        name = Path(lyrics["name"]).name
        data = read_given(songs.folder / name, MAX_LYRICS_MODEL_BYTES)  # a link, in some caches
        write_atomic(out / name, data)
    names = list(map(shard_name, range(len(songs.index["shards"]))))
    vqvae = {
        "fingerprint": facts["fingerprint"],
        "hops": config.hops,
        "codes": config.codebook_sizes,
    }
    index = write_index(
        out,
        names,
        kind="codes",
        sample_rate=config.sample_rate,
        made_by=made_by(),
        lyrics_model=lyrics and lyrics["name"],
        extra={"vqvae": vqvae, "mix": origin["mix"], "source_digest": origin["source"]},
    )
    left_out = songs.index["songs"] - index["songs"]
    lost = f"; {left_out} left out" if left_out else ""
    print(f"{index['songs']} songs, {index['seconds'] / 60:.1f} minutes of codes in {out}{lost}")


if __name__ == "__main__":
    run_command(main, "encode")
