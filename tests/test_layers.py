"""Decisions about the shape of the house, kept by a test: who imports whom, what is called what, what files say."""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "megajukebox"

# What each folder may import of ours. Entries, the modules directly in megajukebox/, may import all but entries.
BELOW: dict[str, set[str]] = {
    "common": set(),
    "models": {"common"},
    "records": {"common"},
    "conditioning": {"common"},
    "notes": {"common"},
    "interop": {"conditioning", "models", "common"},
    "data": {"conditioning", "records", "models", "notes", "common"},
    "resilience": {"records", "common"},
    "monitoring": {"resilience", "data", "records", "common"},
    "sampling": {"data", "conditioning", "records", "models", "notes", "common"},
    "training": {"resilience", "data", "conditioning", "records", "models", "notes", "common"},
    "explorer": {"monitoring", "data", "conditioning", "records", "notes", "common"},
    "distillation": {
        "training",
        "sampling",
        "resilience",
        "data",
        "conditioning",
        "records",
        "models",
        "common",
    },
    "evaluation": {
        "distillation",
        "explorer",
        "sampling",
        "data",
        "conditioning",
        "records",
        "models",
        "notes",
        "common",
    },
}
BELOW["commands"] = set(BELOW)
# A wrapper of a library lives in one file; the explorer reads the audio of samples by itself, to stay free of the rest.
ENGINES = (
    *("collectives", "model_init", "zero", "pipeline", "universal_checkpoint", "comm_timing"),
    "convert_checkpoint",
)
WRAPPERS = {
    "deepspeed": {f"training/engines/{name}.py" for name in ENGINES},
    "webdataset": {
        "data/shards/shard_set.py",
        "data/stream/batches.py",
        "data/shards/transports.py",
        "data/stream/unindexed.py",
    },
    "sentencepiece": {"conditioning/tokenizers.py"},
    "soundfile": {
        "data/audio.py",
        "data/recordings/open_recording.py",
        "explorer/site_builder.py",
        "explorer/loaders/spectrograms.py",
    },
    "av": {"data/recordings/decode_foreign.py"},
    "soxr": {"data/audio.py"},
    "mido": {"notes/midi.py"},
    "symusic": {"data/piece_files.py"},
    "music21": {"notes/sheets.py", "commands/prepare_notes.py"},
    "tinytag": {"data/ingest/tags.py"},
    "jinja2": {"explorer/pages/html.py"},
}


@cache
def modules() -> tuple[Path, ...]:
    return tuple(sorted(PACKAGE.rglob("*.py")))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def known_names() -> frozenset[str]:
    return frozenset(name_of(module) for module in modules())


@cache
def imports(path: Path) -> set[str]:
    """Dotted names that a module imports, anywhere in it but in `if TYPE_CHECKING:`, which is not executed.

    `from a import b` counts as a.b where that is a module.
    """
    known = known_names()
    found: set[str] = set()
    body = [node for node in tree_of(path).body if not is_type_checking(node)]
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & known) | ({node.module} if inner - known else set())
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] == "megajukebox"}


def layer_of(name: str) -> str | None:
    """`data` of megajukebox.data.audio; None for an entry or the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else None


def test_imports_point_one_way() -> None:
    wrong = []
    for path in modules():
        here = layer_of(name_of(path))
        for name in ours(path):
            there = layer_of(name)
            allowed = {None: set(BELOW)}.get(here, BELOW.get(here or "", set()) | {here})
            is_command_line = path.name == "__main__.py" and name == "megajukebox.cli"
            if there not in allowed and name != "megajukebox" and not is_command_line:
                wrong.append(f"{path.relative_to(REPOSITORY)} imports {name}")
    assert not wrong


def test_every_folder_of_the_package_has_its_place_in_the_order() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(BELOW)


def test_no_module_imports_itself_by_way_of_others() -> None:
    no_circle({name_of(path): ours(path) for path in modules()})


def test_no_folder_within_a_layer_does_either() -> None:
    graph: dict[str, set[str]] = {}
    for path in modules():
        folder = folder_of(name_of(path))
        graph.setdefault(folder, set()).update({folder_of(name) for name in ours(path)} - {folder})
    no_circle({name: others for name, others in graph.items() if name.count(".") == 2})


def folder_of(name: str) -> str:
    """megajukebox.data.stream of megajukebox.data.stream.sample_order; a module that lies in no inner folder is itself."""
    return ".".join(name.split(".")[:3])


def no_circle(graph: dict[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, f"a circle of imports: {' -> '.join([*way, name])}"
        if name not in done:
            for other in sorted(graph.get(name, set())):
                visit(other, [*way, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])


@pytest.mark.parametrize("library", WRAPPERS)
def test_a_library_is_imported_by_its_wrapper_alone(library: str) -> None:
    users = {
        path for path in modules() if library in {name.split(".")[0] for name in imports(path)}
    }
    assert {str(path.relative_to(PACKAGE)) for path in users} <= WRAPPERS[library]


def test_deepspeed_is_imported_by_the_engines_alone() -> None:
    """Engines are chosen by a ds_config; everything else works with one that it is given."""
    assert all(path.startswith("training/engines/") for path in WRAPPERS["deepspeed"])
    dynamic = re.compile(r"""import_module\(\s*["']deepspeed""")
    assert not [path for path in modules() if dynamic.search(path.read_text())]


def test_no_class_name_is_used_twice() -> None:
    """`Song`, `Step`, `Run`, `Settings` must say whose: a reader searches for the name."""
    files: dict[str, list[str]] = {}
    for path in modules():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                files.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert not {name: paths for name, paths in files.items() if len(paths) > 1}


# A page of the explorer has the name of what is loaded for it: the folder says which of the two it is.
SAME_FILE_NAMES = {("explorer", "corpus.py")}


def test_no_file_name_is_used_twice_in_a_layer() -> None:
    paths: dict[tuple[str, str], list[Path]] = {}
    for path in modules():
        layer = path.relative_to(PACKAGE).parts[0]
        if path.name != "__init__.py":
            paths.setdefault((layer, path.name), []).append(path)
    assert {key for key, files in paths.items() if len(files) > 1} <= SAME_FILE_NAMES


LONGEST_FUNCTION = 80  # lines


def test_no_function_is_longer_than_a_page() -> None:
    long = []
    for path in modules():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(PACKAGE)}: {node.name} has {lines} lines")
    assert not long


def test_no_code_is_kept_from_the_formatter() -> None:
    """Where its result is ugly, the call has too many arguments."""
    assert not [name_of(path) for path in modules() if "# fmt:" in path.read_text()]


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# Of every 1,000 lines that are not blank; lines of over 100 characters in percent.
DENSITY_LIMITS = {"parallel assignments": 5.0, "nested comprehensions": 1.0, "long lines": 5.0}


def test_code_is_unpacked_enough_to_be_read_once() -> None:
    """One statement, one thought: the admired codebases have 0 to 5 parallel assignments and hardly a nested loop."""
    counts = dict.fromkeys(DENSITY_LIMITS, 0)
    lines = 0
    for path in modules():
        source = path.read_text()
        written = [line for line in source.splitlines() if line.strip()]
        lines += len(written)
        counts["long lines"] += sum(len(line) > 100 for line in written)
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
                counts["parallel assignments"] += isinstance(node.targets[0], ast.Tuple)
            elif isinstance(node, COMPREHENSIONS):
                inner = [part for part in ast.walk(node) if isinstance(part, COMPREHENSIONS)]
                is_nested = len(inner) > 1 or len(node.generators) > 1
                counts["nested comprehensions"] += is_nested
    shares = {name: 1000 * count / lines for name, count in counts.items()}
    shares["long lines"] /= 10  # percent
    assert not {name: share for name, share in shares.items() if share > DENSITY_LIMITS[name]}


def test_no_module_shadows_another_package() -> None:
    """The launcher runs megajukebox/train.py as a script: whatever lies beside it is then found before any package."""
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()} - {
        "__init__",
        "__pycache__",
    }
    assert not names & set(sys.stdlib_module_names)
    assert not names & set(packages_distributions())


def entries() -> list[Path]:
    commands = sorted((PACKAGE / "commands").glob("[a-z]*.py"))
    return [path for path in PACKAGE.glob("*.py") if "__main__" in path.read_text()] + commands


def test_there_are_entries() -> None:
    assert {"prepare", "train", "encode", "sample", "explore", "demo"} <= {
        path.stem for path in entries()
    }


@pytest.mark.parametrize("path", entries(), ids=lambda path: path.stem)
def test_every_entry_opens_with_a_command_to_paste(path: Path) -> None:
    words = ast.get_docstring(tree_of(path)) or ""
    verb = (
        "VERB"
        if path.stem == "cli"
        else path.stem.split("_")[0]
        if path.stem != "control"
        else "stop"
    )  # import_weights is the verb import
    assert re.search(rf"^\W*(megajukebox|deepspeed|python) .*{verb}", words, re.MULTILINE), path


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)) or path.stat().st_size == 0


def texts() -> list[Path]:
    """Every file of the repository that is, or may be, committed, and is text."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git repository")
    paths = [REPOSITORY / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()]


# Written in pieces, so that this file passes itself.
PLACES = ["/" + place for place in ("work/", "home/", "root/", "Users/", "tmp/bash")]
STRANGERS = [
    "this " + "session",
    "a " + "session of",
    "sub" + "agent",
    "language " + "model wrote",
    "co-authored" + "-by",
]


def test_no_file_names_a_place_on_one_machine_or_who_wrote_it() -> None:
    wrong = []
    for path in texts():
        text = path.read_text(errors="replace")
        found = [word for word in PLACES if re.search(rf"(?<![\w.}}*]){word}", text)]
        found += [word for word in STRANGERS if word in text.lower()]
        wrong += [f"{path.relative_to(REPOSITORY)}: {word!r}" for word in found]
    assert not wrong
