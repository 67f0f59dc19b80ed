"""Everything in the package reads and writes files through common/untrusted_files.py and common/files.py, but for this table.

A file that somebody else may have written may be a link to a secret, a pipe that nobody writes to, or a bomb; a name that
is written to may be a link to what is dear. What is opened otherwise has its reason here.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "megajukebox"
MODULES = (
    "common/untrusted_files.py",
    "common/files.py",
    "common/npz.py",
)  # the readers and writers themselves

# Functions by their full names, and methods by their last; what they open or parse is read without a look.
FUNCTIONS = {
    *("open", "io.open", "os.open", "os.fdopen", "os.mkfifo"),
    *("json.load", "json.loads", "yaml.load", "yaml.safe_load", "yaml.full_load", "yaml.load_all"),
    *("numpy.load", "numpy.fromfile", "numpy.memmap", "numpy.loadtxt", "numpy.genfromtxt"),
    *("torch.load", "tarfile.open", "tarfile.TarFile", "zipfile.ZipFile", "gzip.open", "lzma.open"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "shelve.open", "sqlite3.connect"),
    *("soundfile.read", "soundfile.write", "soundfile.info", "soundfile.SoundFile"),
    *("shutil.copyfile", "shutil.copy", "shutil.copy2", "shutil.copyfileobj", "shutil.copytree"),
}
METHODS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "model_validate_json"}

OWN = "a file that comes with the package"
GENERATED = "a file of the repository, written by its developer"
PIPE = "text that a process which this one started wrote into a pipe, or this one itself"
RESTRICTED = "within restricted_loading: tensors, plain values and four classes"
PRIVATE = "from a folder of this user alone, which is looked at first"
NEW = "made under this name just now, and never through a link"

# Where, what: why it may.
ALLOWED = {
    ("monitoring/generate.py", ".read_text"): GENERATED,
    ("monitoring/generate.py", ".write_text"): GENERATED,
    ("interop/own_layout.py", "shutil.copyfileobj"): "between files that were opened with care",
    ("interop/checkpoints.py", "torch.load"): "weights_only: a pickle that would run is refused",
    ("resilience/handover.py", "json.loads"): PRIVATE,
    ("resilience/standby.py", "open"): "/dev/null",
    ("resilience/standby.py", "json.loads"): PRIVATE,
    ("resilience/standby.py", ".read_text"): PRIVATE,
    ("resilience/standby.py", ".write_text"): PRIVATE,
    ("resilience/watchdog.py", ".open"): "x: a new file, and never through a link",
    ("resilience/watchdog.py", ".read_text"): "the line that a rank of ours wrote just now",
    (
        "training/engines/checkpoint_engine.py",
        "open",
    ): "never through a link; /dev/full is a device",
    ("training/engines/checkpoint_engine.py", "os.open"): "the same file",
    ("training/engines/checkpoint_engine.py", "torch.load"): RESTRICTED,
    ("training/engines/ds_config.py", ".read_text"): OWN,
    ("training/engines/ds_config.py", "yaml.safe_load"): OWN,
    ("training/engines/restricted_loading.py", "torch.load"): RESTRICTED,
    ("training/engines/restricted_loading.py", "zipfile.ZipFile"): "of a file opened with care",
    ("records/jsonl_tail.py", "json.loads"): "millions of flat lines; deep ones go to parse_json",
    ("commands/evaluate.py", "shutil.copyfileobj"): "between files that were opened with care",
    ("commands/extend_vocabulary.py", "shutil.copyfileobj"): "as above",
    ("evaluation/frozen_weights.py", "shutil.copyfileobj"): "as above",
    ("explorer/build_cache.py", ".read_bytes"): OWN,
    ("explorer/site_builder.py", ".read_bytes"): OWN,
    ("explorer/site_files.py", "shutil.copyfileobj"): "between files that were opened with care",
    ("explorer/loaders/spectrograms.py", "soundfile.SoundFile"): "opened with care; read by blocks",
    ("explorer/server/blind_trials.py", ".open"): "the trials that are open: no file",
    ("explorer/server/sampler_process.py", "json.loads"): PIPE,
    ("explorer/server/uploads.py", "json.loads"): PIPE,
    ("explorer/server/votes.py", "os.open"): "to lock and append, and never through a link",
    ("explorer/server/votes.py", "os.fdopen"): "the same file",
    ("sampling/songs/audio_stream.py", "os.open"): "written in place, and never through a link",
    ("sampling/songs/audio_stream.py", "os.fdopen"): "the same file",
    ("sampling/songs/resume_store.py", "open"): NEW,
    ("sampling/songs/resume_store.py", "json.loads"): PIPE,
    ("sampling/worker.py", "os.fdopen"): "the pipe of its answers",
    ("sampling/composing/composer_worker.py", "os.fdopen"): "the same",
    ("explorer/server/read_note_file.py", "os.fdopen"): "the same",
    ("sampling/worker.py", "json.loads"): PIPE,
}
ALLOWED |= {
    ("common/process_pool.py", ".read_text"): "/proc",
    ("data/audio.py", "soundfile.SoundFile"): "the class, which open_recording.py makes one of",
    ("data/recordings/decode_foreign.py", ".open"): "of what is open: its standard input",
    ("data/recordings/decode_foreign.py", "os.fdopen"): "the same",
    ("data/recordings/foreign_audio.py", "os.fdopen"): "a file that is open, once more",
    ("data/recordings/foreign_audio.py", "shutil.copyfileobj"): "into a file without a name",
    (
        "data/recordings/open_recording.py",
        "soundfile.SoundFile",
    ): "opened by number or in memory, within bounds",
    ("data/audio.py", "soundfile.write"): "into memory",
    ("data/ingest/convert.py", ".open"): "SourceSong.open, by open_inside or open_given",
    (
        "data/shards/index.py",
        "numpy.memmap",
    ): "of a file that open_given opened, once its header fits",
    ("data/shards/local_cache.py", "os.open"): "locks: past no link, never emptied",
    ("data/shards/local_cache.py", ".open"): "ShardCache.open, by open_inside",
    ("data/shards/shard_set.py", ".open"): "the same",
    ("data/shards/shard_set.py", "json.loads"): "what our own writer wrote; 64 MB and more of it",
    ("data/shards/transports.py", ".open"): "of a URL, not a file",
    ("notes/sheets.py", "zipfile.ZipFile"): "in memory, within bounds",
    ("notes/sheets.py", ".open"): "a member of it",
    ("monitoring/support_bundle.py", "tarfile.open"): "written, into a file of atomic_open",
}


def calls_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every call in a module that opens or parses a file by itself: what, and its line."""
    tree = ast.parse(path.read_text())
    names: dict[str, str] = {}  # as they are called here: their full name
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        what = full_name(node, names)
        is_method = isinstance(node, ast.Attribute) and node.attr in METHODS
        if what in FUNCTIONS:
            yield what, node.lineno
        elif is_method and not is_class_of_ours(node, names):
            yield f".{node.attr}", node.lineno


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """`np.load` -> `numpy.load`; empty for what is no plain name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = full_name(node.value, names)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def is_class_of_ours(node: ast.Attribute, names: dict[str, str]) -> bool:
    """Whether a method is a constructor of a class of ours, as `References.open`."""
    owner = full_name(node.value, names)
    return owner.startswith("megajukebox.") or (owner[:1].isupper() and owner != "Path")


@cache
def found() -> dict[tuple[str, str], list[int]]:
    uses: dict[tuple[str, str], list[int]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if name not in MODULES:
            for what, line in calls_of(path):
                uses.setdefault((name, what), []).append(line)
    return uses


def test_files_are_opened_by_the_two_modules_alone() -> None:
    unknown = {}
    for use, lines in found().items():
        if use not in ALLOWED:
            unknown[use] = lines
    assert not unknown, "use common/untrusted_files.py and common/files.py, or give a reason here"


def test_the_table_has_no_more_than_there_is() -> None:
    assert not ALLOWED.keys() - found().keys()


def test_the_walk_finds_what_it_is_for(tmp_path: Path) -> None:
    source = """
import json, numpy as np
from os import open as opened
from pathlib import Path
from yaml import safe_load
from megajukebox.evaluation.inputs import References
References.open([])
np.load(file), json.load(file), safe_load(file), opened(file), open(file), list(map(open, files))
Path(file).open(), file.read_text(), (folder / name).write_bytes(b"")
"""
    (tmp_path / "module.py").write_text(source)
    assert {what for what, _ in calls_of(tmp_path / "module.py")} == {
        *("numpy.load", "json.load", "yaml.safe_load", "os.open", "open"),
        *(".open", ".read_text", ".write_bytes"),
    }
