"""Files of notes on their way into note shards: found, read one after another in processes of their own, written.

    files --pieces_of (many processes)--> accept (one, in order)--> notes-000000.tar ... --> index.json

A shard holds the pieces of so many files; it is finished when its rows are there, and is kept by the next run.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.process_pool import in_order
from megajukebox.common.untrusted_files import (
    open_inside,
    parse_json,
    read_given,
    read_inside,
)
from megajukebox.data.ingest.convert import slug
from megajukebox.data.ingest.discover import folders_below
from megajukebox.data.ingest.sidecars import report_name
from megajukebox.data.ingest.source_song import SongMetadata
from megajukebox.data.shards.build_index import write_index
from megajukebox.data.shards.index import NOTES_TIME_RATE
from megajukebox.data.shards.shard_set import ShardSample, finished_shard, write_shard
from megajukebox.notes.events import NoteVocabulary, encode
from megajukebox.notes.instruments import FAMILIES
from megajukebox.notes.notes import Notes
from megajukebox.notes.readers import ENDINGS, MAX_BYTES, pieces_of
from megajukebox.records.ingest_notes import IngestNote, NoteKind, write_notes

WORKER_MEMORY = 4 << 30  # bytes that a process which reads pieces may take
MAX_SIDECAR = 1 << 20  # bytes
SIDECAR = ".json"
OUTPUT_FILES = ("index.json", "songs.npy", "refused.jsonl", "plan.json", "notes-*")
FEWEST_NOTES = 2


@dataclass(frozen=True)
class NoteFile:
    """A file of notes, and what its side-car, or the whole collection, says of it."""

    folder: Path
    name: str  # below the folder
    metadata: dict[str, Any] = field(default_factory=dict)  # fields of SongMetadata


@dataclass(frozen=True)
class NotesIngestConfig:
    """What decides the bytes of note shards, besides the files."""

    files_per_shard: int = 256
    pedal: bool = True  # the sustain pedal lengthens notes
    min_notes: int = FEWEST_NOTES


class FilePieces(NamedTuple):
    """What one file gave."""

    pieces: list[tuple[str, bytes, dict[str, Any]]]  # (key, Notes as npz, facts)
    vocabularies: list[dict[str, Any]]  # of each piece, as NoteVocabulary.to_json
    refused: list[tuple[str, str]]  # (piece, why)
    repairs: list[tuple[str, str]]  # (piece, what was repaired)


@dataclass(frozen=True)
class NotesReport:
    """The result of preparing notes."""

    index: dict[str, Any]
    refused: list[dict[str, str]]
    notes: list[IngestNote]
    licences: Counter[str]
    notes_count: int


# ---- Finding ----------------------------------------------------------------------------------------------------------


def find_note_files(
    folder: Path, metadata: Mapping[str, Any], follow_links: bool = False
) -> tuple[list[NoteFile], list[IngestNote]]:
    """Files of notes below `folder`, in the order of their names, and what was passed over.

    `<name>.json` beside a file names fields of its song; `metadata` holds where it says nothing.

    Raises:
        UserError: the folder is missing or holds no such file.
    """
    if not folder.is_dir():
        raise UserError(f"source {str(folder)!r} is no folder; give one with {', '.join(ENDINGS)}")
    files: list[NoteFile] = []
    notes: list[IngestNote] = []
    for parent, names in folders_below(folder, follow_links, notes):
        for name in names:
            path = Path(parent, name)
            below = report_name(path, folder)
            if name.startswith("."):
                notes.append(IngestNote(below, NoteKind.hidden, "a hidden file is not read"))
            elif path.suffix.lower() in ENDINGS:
                own = sidecar_of(path, names, below, notes)
                files.append(NoteFile(folder, below, {**metadata, **own}))
            elif path.suffix.lower() != SIDECAR:
                reason = f"{path.suffix or 'no ending'}: notes are read from {', '.join(ENDINGS)}"
                notes.append(IngestNote(below, NoteKind.not_audio, reason))
    if not files:
        raise UserError(f"source {str(folder)!r} holds no notes ({', '.join(ENDINGS)})")
    return sorted(files, key=lambda file: file.name), sorted(notes)


def sidecar_of(path: Path, names: list[str], below: str, notes: list[IngestNote]) -> dict[str, Any]:
    """Fields of `<stem>.json` beside a file; a mistake in it costs the side-car."""
    name = path.stem + SIDECAR
    if name not in names:
        return {}
    try:
        values = parse_json(read_inside(path.parent, name, MAX_SIDECAR))
        return SongMetadata(**values).model_dump(exclude_none=True)
    except (OSError, ValueError, TypeError) as error:
        why = " ".join(str(error).split())[:300]
        notes.append(IngestNote(below, NoteKind.bad_sidecar, f"{name} is not read: {why}"))
        return {}


# ---- Reading ----------------------------------------------------------------------------------------------------------


def read_file(file: NoteFile, settings: NotesIngestConfig) -> FilePieces:
    """All pieces of one file; what cannot be read is refused with its reason."""
    result = FilePieces([], [], [], [])
    ending = Path(file.name).suffix
    try:
        with open_inside(file.folder, file.name) as opened:
            data = opened.read(MAX_BYTES + 1)
        for piece in pieces_of(data, ending, settings.pedal):
            name = f"{file.name}#{piece.name}" if piece.name else file.name
            if piece.notes is None:
                result.refused.append((name, "; ".join(piece.repairs)))
            elif len(piece.notes.notes) < settings.min_notes:
                result.refused.append((name, f"has {len(piece.notes.notes)} notes"))
            else:
                vocabulary = NoteVocabulary.of([piece.notes])
                result.pieces.append(accepted(file, name, piece.notes, vocabulary))
                result.vocabularies.append(vocabulary.to_json())
                result.repairs.extend((name, repair) for repair in piece.repairs)
    except (OSError, ValueError, MemoryError) as error:
        result.refused.append((file.name, str(error) or type(error).__name__))
    return result


def accepted(
    file: NoteFile, name: str, notes: Notes, vocabulary: NoteVocabulary
) -> tuple[str, bytes, dict[str, Any]]:
    """(key, bytes, facts) of a piece: what `<key>.json` will say."""
    stem, _, number = name.partition("#")
    key = f"{slug(Path(stem).stem + ('-' + number if number else ''))}-{notes.fingerprint()[:8]}"
    families = dict.fromkeys(part.family for part in notes.parts)
    facts = {
        **file.metadata,
        "key": key,
        "frames": round(notes.seconds * NOTES_TIME_RATE),
        "source": name,
        "seconds": round(notes.seconds, 3),
        "notes": len(notes.notes),
        "events": len(encode(notes, vocabulary)),
        "parts": [part.name or part.family for part in notes.parts],
        "instruments": [family for family in FAMILIES if family in families],
        "tonality": notes.key or None,
        "played": notes.played,
        "fingerprint": notes.fingerprint(),
    }
    return key, notes.to_npz(), {name: value for name, value in facts.items() if value is not None}


def crashed(file: NoteFile) -> FilePieces:
    return FilePieces([], [], [(file.name, "reading it killed its process twice")], [])


# ---- Writing ----------------------------------------------------------------------------------------------------------


def prepare_notes(
    files: list[NoteFile],
    passed_over: list[IngestNote],
    out: Path,
    settings: NotesIngestConfig,
    *,
    processes: int,
    made_by: Mapping[str, str | None],
    fresh: bool = False,
    after_file: Callable[[int], object] = lambda count: None,
) -> NotesReport:
    """Make the note shards `out`, or resume making them.

    Raises:
        UserError: `out` holds shards of other files or settings (unless `fresh`), or every piece is refused.
    """
    make_folder(out)
    if fresh:
        for pattern in OUTPUT_FILES:
            for path in out.glob(pattern):
                path.unlink()
    check_plan(out, files, settings)
    plan = {}
    for first in range(0, len(files), settings.files_per_shard):
        name = f"notes-{first // settings.files_per_shard:06d}.tar"
        plan[name] = files[first : first + settings.files_per_shard]
    shards = make_shards(out, plan, settings, processes, after_file)
    refused: list[dict[str, str]] = []
    notes = list(passed_over)
    for shard in shards:
        refused += shard["notes"]["refused"]
        for source, repair in shard["notes"]["repairs"]:
            notes.append(IngestNote(source, NoteKind.repaired_notes, repair))
    lines = "".join(json.dumps(line) + "\n" for line in refused)
    write_atomic(out / "refused.jsonl", lines.encode())
    write_notes(out, notes)
    if not any(shard["songs"] for shard in shards):
        raise UserError(f"all pieces were refused; {out}/refused.jsonl says why")
    licences: Counter[str] = Counter()
    for shard in shards:
        licences.update(shard["notes"]["licences"])
    vocabulary = NoteVocabulary.joined(
        NoteVocabulary.from_json(shard["notes"]["vocabulary"]) for shard in shards
    )
    told = {
        "vocabulary": vocabulary.to_json(),
        "events": sum(shard["notes"]["events"] for shard in shards),
        "licences": dict(sorted(licences.items())),
    }
    index = write_index(
        out,
        plan,
        kind="notes",
        sample_rate=NOTES_TIME_RATE,
        made_by=made_by,
        extra={"notes": told},
    )
    count = sum(shard["notes"]["notes"] for shard in shards)
    return NotesReport(index, refused, notes, licences, count)


def check_plan(out: Path, files: list[NoteFile], settings: NotesIngestConfig) -> None:
    """Write plan.json.

    Raises:
        UserError: one is there of other files or settings.
    """
    digest = hashlib.sha256()
    for file in files:
        stat = (file.folder / file.name).stat()
        facts = [file.name, stat.st_size, stat.st_mtime_ns, file.metadata]
        digest.update(json.dumps(facts).encode() + b"\n")
    plan = {"format": 1, "settings": asdict(settings), "files": digest.hexdigest()}
    path = out / "plan.json"
    if path.is_file() and parse_json(read_given(path)) != plan:
        raise UserError(
            f"{out} was begun with other files or settings; pass --fresh to throw its shards away, "
            "or choose another --out"
        )
    write_atomic(path, (json.dumps(plan, indent=1) + "\n").encode())


def make_shards(
    out: Path,
    plan: dict[str, list[NoteFile]],
    settings: NotesIngestConfig,
    processes: int,
    after_file: Callable[[int], object],
) -> list[dict[str, Any]]:
    """The rows of all shards in order: of those finished before, and of the others as they are written."""
    finished = {name: finished_shard(out / name) for name in plan}
    missing: list[NoteFile] = []
    for name, files in plan.items():
        if not finished[name]:
            missing += files
    shards = []
    stored: dict[str, str] = {}  # fingerprints and keys -> piece
    work = partial(read_file, settings=settings)
    with closing(in_order(work, missing, processes, crashed, WORKER_MEMORY)) as results:
        for name, files in plan.items():
            shard = finished[name]
            if shard is None:
                shard = make_shard(out / name, islice(results, len(files)), stored, after_file)
            else:
                after_file(len(files))
            stored.update(shard["notes"]["stored"])
            shards.append(shard)
    return shards


def make_shard(
    path: Path,
    results: Iterable[FilePieces],
    stored: dict[str, str],
    after_file: Callable[[int], object],
) -> dict[str, Any]:
    """Write one shard; of two pieces with the same notes the first stays."""
    told: dict[str, Any] = {"refused": [], "repairs": [], "stored": {}, "licences": {}}
    told |= {"notes": 0, "events": 0, "vocabulary": NoteVocabulary((), (), False).to_json()}

    def samples() -> Iterator[ShardSample]:
        for result in results:
            refused = list(result.refused)
            for (key, data, facts), vocabulary in zip(result.pieces, result.vocabularies):
                known = stored.get(facts["fingerprint"]) or stored.get(key)
                if known:
                    refused.append((facts["source"], f"duplicate: the same notes as {known}"))
                    continue
                names = {facts["fingerprint"]: facts["source"], key: facts["source"]}
                stored.update(names)
                told["stored"].update(names)
                licence = facts.get("licence", "not said")
                told["licences"][licence] = told["licences"].get(licence, 0) + 1
                told["notes"] += facts["notes"]
                told["events"] += facts["events"]
                both = map(NoteVocabulary.from_json, (told["vocabulary"], vocabulary))
                told["vocabulary"] = NoteVocabulary.joined(both).to_json()
                text = json.dumps(facts, ensure_ascii=False).encode()
                yield ShardSample(key, facts["frames"], {"json": text, "notes.npz": data})
            for name, why in refused:
                reason, _, detail = why.partition(": ")
                told["refused"].append({"song": name, "reason": reason, "detail": detail})
            told["repairs"] += result.repairs
            after_file(1)

    return write_shard(path, samples(), told)
