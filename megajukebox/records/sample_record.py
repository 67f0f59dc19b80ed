"""What `<id>.json` of a generated song holds, across versions: written by sampling, read by sampling and the explorer.

Schema 2 renamed `engine` to `decoding` and the `way` of a level to its `decoding`; the values got the field's names.
"""

from typing import Any

SAMPLE_SCHEMA = 2
# Names of schema 1, in records, in `--way` and in the facts that a resume file holds.
RENAMED_DECODINGS = {
    "ahead": "speculative",
    "fixed_point": "jacobi",
    "across": "jacobi_windows",
    "rows": "cuda_graph",
    "windows": "parallel_windows",
}
RENAMED_SAMPLERS = {"polished": "verified"}  # as in "polished 1,1": a student's kind and its order


def current_decoding(name: str) -> str:
    """The name of today of a level's decoding, which may be one of schema 1: `polished 1,1` -> `verified 1,1`."""
    kind, space, order = name.partition(" ")
    if space:
        return f"{RENAMED_SAMPLERS.get(kind, kind)} {order}"
    return RENAMED_DECODINGS.get(name, name)


def current_decoding_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """What decides about codes (`exact`, `decoding`, `int8`, `students`), in the names of schema 2."""
    current = dict(facts)
    if "way" in current:
        current["decoding"] = current_decoding(current.pop("way"))
    return current


def current_song_key(key: dict[str, Any]) -> dict[str, Any]:
    """A song's key (request, weights, precision, decoding), as a resume file of either schema holds it."""
    current = dict(key)
    if "engine" in current:
        current["decoding"] = current.pop("engine")
    if isinstance(current.get("decoding"), dict):
        current["decoding"] = current_decoding_facts(current["decoding"])
    return current


def current_sample_record(record: dict[str, Any]) -> dict[str, Any]:
    """A sample's record of either schema, in the names of schema 2. Fields of a wrong type stay as they are."""
    current = current_song_key(record)
    levels = current.get("levels")
    if isinstance(levels, dict):
        current["levels"] = dict(levels)
        for name, level in levels.items():
            if isinstance(level, dict) and isinstance(level.get("way"), str):
                current["levels"][name] = current_decoding_facts(level)
    return current
