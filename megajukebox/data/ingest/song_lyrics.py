"""The words of a song as they are stored: from beside it or from its tags, with notes on what of them is not sung as written."""

from megajukebox.common.errors import UserError
from megajukebox.conditioning.lrc import LrcReading, read_lrc
from megajukebox.data.ingest.source_song import SourceSong, with_lyrics
from megajukebox.data.ingest.tags import SongTags
from megajukebox.records.ingest_notes import IngestNote, NoteKind

MAX_NOTES_OF_A_KIND = 3  # on one song's lyrics; further ones are counted


def song_with_embedded_lyrics(song: SourceSong, tags: SongTags) -> SourceSong:
    """`song`; without lyrics of its own it gets those in the tags of its file."""
    if song.lyrics is not None or tags.lyrics is None or tags.lyrics_kind is None:
        return song
    try:
        return with_lyrics(song, tags.lyrics, tags.lyrics_kind, "tags")
    except UserError:  # absurdly long: no lyrics
        return song


def lyrics_notes(song: SourceSong, seconds: float) -> list[IngestNote]:
    """Notes on the lyrics of a song that lasts `seconds`: what was not understood, what was changed, what is too late."""
    if song.lyrics is None:
        return []
    reading = read_lrc(song.lyrics)
    notes: list[IngestNote] = []
    counts: dict[NoteKind, int] = {}
    for remark in reading.remarks:
        kind = NoteKind(remark.kind.value)
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] <= MAX_NOTES_OF_A_KIND:
            detail = f"lyrics line {remark.line}: {remark.detail}"
            notes.append(IngestNote(song.name, kind, detail))
    for kind, count in counts.items():
        if count > MAX_NOTES_OF_A_KIND:
            detail = f"lyrics: the same at {count - MAX_NOTES_OF_A_KIND} more places"
            notes.append(IngestNote(song.name, kind, detail))
    late = late_words(song, reading, seconds)
    return [*notes, late] if late else notes


def late_words(song: SourceSong, reading: LrcReading, seconds: float) -> IngestNote | None:
    """The note that words start behind the end of the song, or None."""
    starts = [word.t0 for word in reading.words if word.t0 >= seconds]
    if not starts:
        return None
    detail = (
        f"{len(starts)} of {len(reading.words)} timed words start behind the end at {seconds:.2f} s, the last at "
        f"{max(starts):.2f} s; give lyrics of this recording, or mend their offset"
    )
    return IngestNote(song.name, NoteKind.lyrics_outside_song, detail)
