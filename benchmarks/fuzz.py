"""Read many mutated tars, recordings, JSONs, arrays and lyrics; writes benchmarks/results/fuzz.json.

    python benchmarks/fuzz.py                       # 20,000 inputs, some minutes
    python benchmarks/fuzz.py --inputs 100000
    python benchmarks/fuzz.py --ingest              # side-cars, LRC and tags instead; writes fuzz_ingest.json

Each chunk runs in a process of its own, so that a crash of a codec is seen and its inputs are named.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from fixtures.fuzzing import Corpus, fuzz, peak_megabytes
from fixtures.ingest_fuzzing import IngestCorpus

RESULTS = Path(__file__).parent / "results"


def main(
    inputs: Annotated[int, typer.Option(min=10)] = 20_000,
    chunk: Annotated[int, typer.Option(min=10)] = 1_000,
    first: Annotated[int, typer.Option(help="The first seed.")] = 0,
    ingest: Annotated[bool, typer.Option("--ingest", help="What prepare reads.")] = False,
) -> None:
    """Fuzz the readers."""
    started, totals, peaks, failures = time.monotonic(), {}, [], []
    for start in range(first, first + inputs, chunk):
        counts, peak, failure = in_a_process(
            range(start, min(start + chunk, first + inputs)), ingest
        )
        totals = (
            {kind: totals.get(kind, 0) + count for kind, count in counts.items()}
            if counts
            else totals
        )
        peaks.append(peak)
        failures += [failure] if failure else []
        print(
            f"{start + chunk - first} inputs, {len(failures)} failures, peak {peak:.0f} MB",
            flush=True,
        )
    seconds = round(time.monotonic() - started, 1)
    result = {
        "inputs": totals,
        "failures": failures,
        "peak_megabytes": [min(peaks), max(peaks)],
        "seconds": seconds,
    }
    result_file = RESULTS / ("fuzz_ingest.json" if ingest else "fuzz.json")
    result_file.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(1 if failures else 0)


def in_a_process(seeds: range, ingest: bool) -> tuple[dict[str, int], float, str]:
    """(inputs by kind, peak memory in MB, what went wrong) of one chunk."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=work, args=(seeds, ingest, theirs)
    )
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        answer = (
            {},
            0.0,
            f"the process died of {process.exitcode} at seeds {seeds.start} to {seeds.stop}",
        )
    process.join()
    return answer


def work(seeds: range, ingest: bool, answer: "multiprocessing.connection.Connection") -> None:  # type: ignore[name-defined]
    with tempfile.TemporaryDirectory() as folder:
        try:
            corpus = IngestCorpus if ingest else Corpus
            counts, failure = fuzz(Path(folder), seeds, corpus), ""
        except AssertionError as error:
            counts, failure = {}, str(error)
        answer.send((counts, peak_megabytes(), failure))


if __name__ == "__main__":
    typer.run(main)
