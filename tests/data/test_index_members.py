"""Members of a song that come with a version: older sets lack them, newer sets have more, both are read."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.tiny_shards import CLIP, batches, same, steps, write_songs

from megajukebox.common.errors import UserError
from megajukebox.data.shards import index as index_module
from megajukebox.data.shards.index import row_type
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.shards.verify import check_shard
from megajukebox.data.stream.song_dataset import SongClips


def with_members(folder: Path, members: list[str]) -> Path:
    """The set in `folder` as a version wrote it that knows just these members; a new one has the lyrics' bytes."""
    rows = np.load(folder / "songs.npy")
    changed = np.zeros(len(rows), row_type(members))
    for field in changed.dtype.names:
        source = field if field in rows.dtype.names else field.replace("midi", "lyrics")
        changed[field] = rows[source]
    np.save(folder / "songs.npy", changed)
    index: dict[str, Any] = json.loads((folder / "index.json").read_text())
    index["members"] = members
    index["songs_file"]["sha256"] = hashlib.sha256((folder / "songs.npy").read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_a_set_older_than_a_member_is_read_and_has_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = steps(batches(SongClips(ShardSet(write_songs(tmp_path / "whole")), CLIP)), 4)
    old = ShardSet(with_members(write_songs(tmp_path / "old"), ["json", "audio"]))
    assert old.members == ("json", "audio")
    assert not old.has(1, "lyrics") and old.read_member(1, "lyrics") == b""
    assert same(steps(batches(SongClips(old, CLIP)), 4), whole)
    assert check_shard((old, 0)) == []
    monkeypatch.setitem(index_module.MEMBERS, "songs", ("json", "audio", "lyrics", "midi"))
    today = ShardSet(write_songs(tmp_path / "today"))
    assert not today.has(0, "midi") and "midi" in today.members
    before = ShardSet(tmp_path / "whole")
    assert not before.has(0, "midi") and before.read_member(0, "midi") == b""


def test_members_of_a_newer_version_are_tolerated(tmp_path: Path) -> None:
    whole = steps(batches(SongClips(ShardSet(write_songs(tmp_path / "whole")), CLIP)), 4)
    members = ["json", "audio", "lyrics", "midi"]
    new = ShardSet(with_members(write_songs(tmp_path / "new"), members))
    assert new.members == tuple(members)
    assert new.has(1, "midi") and new.read_member(1, "midi") == new.read_member(1, "lyrics")
    assert same(steps(batches(SongClips(new, CLIP)), 4), whole)
    assert check_shard((new, 0)) == []


@pytest.mark.parametrize(
    "members",
    [
        ["json", "lyrics"],
        ["json", "audio", "audio"],
        ["json", "audio", "../x"],
        ["json", "audio", 7],
    ],
)
def test_members_that_cannot_be_are_refused(tmp_path: Path, members: list[Any]) -> None:
    folder = write_songs(tmp_path / "set")
    index = json.loads((folder / "index.json").read_text())
    index["members"] = members
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"kind 'songs' with members .* is not known"):
        ShardSet(folder)
