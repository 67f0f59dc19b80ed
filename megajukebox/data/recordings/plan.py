"""How a recording is to be read: who reads it, from which of its bytes, how long it must then be, what its channels are.

The decoders believe headers; a plan is made from the bytes. It costs some reads of a few bytes, and for an MP3 or an Ogg
one walk over its frames or pages.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from megajukebox.common.errors import BadSampleError
from megajukebox.data.recordings.channels import FLAC_ORDERS, VORBIS_ORDERS, Speakers
from megajukebox.data.recordings.chunks import ChunkLayout, aiff_layout, caf_layout, wav_layout
from megajukebox.data.recordings.flac_blocks import flac_links
from megajukebox.data.recordings.kinds import (
    FLAC_IN_OGG,
    SPEEX,
    FileKind,
    Recognised,
    RecordingReader,
    recognise,
)
from megajukebox.data.recordings.mpeg_frames import (
    first_frame,
    frame_of,
    mpeg_streams,
    pieces_of_stream,
)
from megajukebox.data.recordings.ogg_pages import ogg_links
from megajukebox.data.recordings.pieces import ByteView, Padding, Piece, Span

MAX_LINKS = 1000  # of one file


class AudioNote(NamedTuple):
    """Something about a recording that is told, once: a name of NoteKind, and one line."""

    kind: str
    detail: str


class LinkPlan(NamedTuple):
    """One of the recordings that are joined in a file; mostly the only one."""

    pieces: tuple[Piece, ...] | None  # what its decoder is given; None: the whole file
    promised: int | None = None  # frames that it must have
    at_least: int | None = None  # frames that its header says; it may have more
    speakers: Speakers | None = None  # that it names
    is_padded: bool = False  # its decoder is stopped after `promised` frames


@dataclass
class RecordingPlan:
    """How to read one file."""

    kind: FileKind
    links: list[LinkPlan] = field(default_factory=list)
    orders: dict[int, Speakers] = field(default_factory=lambda: FLAC_ORDERS)  # if none are named
    notes: list[AudioNote] = field(default_factory=list)

    def note(self, kind: str, detail: str) -> None:
        if detail:
            self.notes.append(AudioNote(kind, detail))


def plan_of(view: ByteView) -> RecordingPlan:
    """How the file of `view` is to be read.

    Raises:
        BadSampleError: it is no sound, is shorter than it says, or has more behind its end.
    """
    recognised = recognise(view)
    kind = recognised.kind
    if kind.reader is RecordingReader.NONE:
        raise BadSampleError("undecodable", f"unreadable: it is {kind.name}; {kind.way_out}")
    plan = RecordingPlan(kind)
    if recognised.left_out:
        detail = f"{recognised.left_out} bytes before its start are no sound and were left out"
        plan.note("damaged", detail)
    PLANNERS[kind.reader](view, recognised, plan)
    if len(plan.links) > MAX_LINKS:
        raise BadSampleError(
            "undecodable",
            f"unreadable: {len(plan.links)} recordings are joined in it; at most {MAX_LINKS} are read",
        )
    if len(plan.links) > 1:
        plan.note("length", f"{len(plan.links)} recordings are joined in it; all were read")
    return plan


def plan_foreign(view: ByteView, recognised: Recognised, plan: RecordingPlan) -> None:
    pieces = (Span(recognised.start, view.size),) if recognised.start else None
    plan.links.append(LinkPlan(pieces))


def plan_wav(view: ByteView, recognised: Recognised, plan: RecordingPlan) -> None:
    start: int | None = recognised.start
    while start is not None and len(plan.links) <= MAX_LINKS:
        layout = wav_layout(view, start)
        add_layout(plan, layout)
        start = layout.next_start


def plan_aiff(view: ByteView, recognised: Recognised, plan: RecordingPlan) -> None:
    add_layout(plan, aiff_layout(view, recognised.start))


def plan_caf(view: ByteView, recognised: Recognised, plan: RecordingPlan) -> None:
    add_layout(plan, caf_layout(view, recognised.start))


def add_layout(plan: RecordingPlan, layout: ChunkLayout) -> None:
    plan.note("length", layout.note)
    plan.links.append(LinkPlan(layout.pieces, layout.frames, speakers=layout.speakers))


def plan_flac(view: ByteView, recognised: Recognised, plan: RecordingPlan) -> None:
    for link in flac_links(view, recognised.start):
        plan.links.append(LinkPlan(link.pieces, at_least=link.promised, speakers=link.speakers))


def plan_mpeg(view: ByteView, recognised: Recognised, plan: RecordingPlan) -> None:
    streams, skipped = mpeg_streams(view, recognised.start)
    if not streams:  # the decoder says what is wrong
        plan.links.append(LinkPlan(None))
        return
    for stream in streams:
        pieces = pieces_of_stream(view, stream)
        is_padded = isinstance(pieces[-1], Padding)
        plan.links.append(
            LinkPlan(pieces, stream.length if is_padded else None, is_padded=is_padded)
        )
    last = streams[-1].frame_spans[-1]
    lost = sum(span.stop - span.start for span in skipped if span.start < last.start)
    if lost:
        plan.note("damaged", f"{lost} bytes between its frames are none and were left out")
    refuse_other_frames(view, last.stop, streams[0].first.sample_rate)


def refuse_other_frames(view: ByteView, start: int, sample_rate: int) -> None:
    """Raises BadSampleError if frames of another kind follow the last one."""
    other = first_frame(view, start)
    if other < 0:
        return
    frame = frame_of(int.from_bytes(view.at(other, 4), "big"))
    if frame is not None:
        raise BadSampleError(
            "undecodable",
            f"unreadable: frames of {frame.sample_rate} Hz follow those of {sample_rate} Hz, at byte "
            f"{other:,}: two kinds of MP3 are joined; cut the file there",
        )


def plan_ogg(view: ByteView, recognised: Recognised, plan: RecordingPlan) -> None:
    links = ogg_links(view, recognised.start)
    sounds = [link.sound for link in links if link.sound is not None]
    if not sounds:
        raise BadSampleError("undecodable", "unreadable: an Ogg without a stream of sound in it")
    codecs = {sound.codec for sound in sounds}
    if codecs & {"FLAC", "Speex"}:
        plan.kind = FLAC_IN_OGG if "FLAC" in codecs else SPEEX
        plan_foreign(view, recognised, plan)
        return
    plan.orders = VORBIS_ORDERS
    for sound in sounds:
        plan.links.append(LinkPlan(tuple(sound.spans)))
        if sound.gaps:
            plan.note("damaged", f"pages of it are missing in {sound.gaps} places")
        if not sound.ended:
            plan.note("length", "its last page is not marked as the last: it may have been cut")


PLANNERS = {
    RecordingReader.FFMPEG: plan_foreign,
    RecordingReader.WAV: plan_wav,
    RecordingReader.AIFF: plan_aiff,
    RecordingReader.CAF: plan_caf,
    RecordingReader.FLAC: plan_flac,
    RecordingReader.MPEG: plan_mpeg,
    RecordingReader.OGG: plan_ogg,
}
