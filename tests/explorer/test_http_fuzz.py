"""Mutated requests to the pages' server: no crash, no hang, no file that is not the site's, no growth."""

import json
import os
import sys
import threading
from pathlib import Path

import psutil
import pytest
from fixtures.asgi import served_in_a_thread
from fixtures.explorer_samples import add_sample
from fixtures.http_fuzzing import fuzz_http

from megajukebox.explorer.server import api, draw_api, uploads
from megajukebox.explorer.server.access import AccessRules
from megajukebox.explorer.server.static_files import Library
from megajukebox.explorer.server.studio_form import StudioOptions
from megajukebox.explorer.server.studio_jobs import Studio

TOKEN = "a-token-of-this-test"
# Stands in for a composer: it answers every order alike.
ANSWER = '{"state": "failed", "reason": "it is none"}'
NO_COMPOSER = [
    sys.executable,
    "-c",
    f"import sys\nfor _ in sys.stdin: print('{ANSWER}', flush=True)",
]
MAX_GROWTH = 60 << 20  # bytes of this process, client and all, over the whole of a run


@pytest.mark.parametrize(
    "seeds", [range(300), pytest.param(range(300, 12_300), marks=pytest.mark.slow)]
)
def test_no_request_stops_the_server_or_gets_what_is_not_its(
    tmp_path: Path, seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SONGS_PER_MINUTE", "VOTES_PER_MINUTE", "VOTES_PER_VOTER", "TRIALS_PER_VOTER"):
        monkeypatch.setattr(api, name, 10**9)  # or most requests would meet the limit
    for name in ("FILLS_PER_MINUTE", "FILES_PER_MINUTE", "OPENED_PER_MINUTE"):
        monkeypatch.setattr(draw_api, name, 10**9)
    monkeypatch.setattr(uploads, "decode_in_process", lambda *_: {"error": "it is none"})
    monkeypatch.setattr(draw_api, "read_in_process", lambda *_: {"piece": {}, "told": []})
    add_sample(tmp_path / "samples", "good", levels=("bottom",), runs="runs/old")
    add_sample(tmp_path / "samples", "other", levels=("bottom",), runs="runs/new")
    (tmp_path / "secret.txt").write_text("the secret")
    (tmp_path / "samples" / "link.wav").symlink_to(tmp_path / "secret.txt")
    library = Library([tmp_path / "samples"], tmp_path / "site")
    library.refresh()
    command = [sys.executable, "-c", "import time; time.sleep(3600)"]  # stands in for a model
    studio = Studio(
        tmp_path, tmp_path / "samples", tmp_path / "work", lambda: None, command=lambda *_: command
    )
    store = uploads.UploadStore(tmp_path / "work" / "uploads")
    options = StudioOptions(tmp_path, ("autoregressive",), 10)
    services = api.StudioServices(studio, store, options, lambda _: [])
    composer = draw_api.DrawServices(tmp_path, tmp_path / "work", command=lambda _: NO_COMPOSER)
    rules = AccessRules(TOKEN, 80)
    app = api.application(library, tmp_path / "votes.jsonl", services, rules, composer)
    process = psutil.Process()
    with served_in_a_thread(app) as port:
        fuzz_http(port, TOKEN, range(-50, 0))  # what is loaded once
        before = process.memory_info().rss, process.num_fds(), threading.active_count()
        counts = fuzz_http(port, TOKEN, seeds)
        after = process.memory_info().rss, process.num_fds(), threading.active_count()
    services.close()
    composer.close()
    facts = {"answers": dict(counts), "rss, files, threads": [before, after]}
    print(json.dumps(facts), file=sys.stderr)
    assert counts["200"] > len(seeds) / 10 and counts["401"] + counts["400"] > len(seeds) / 20
    assert after[0] - before[0] < MAX_GROWTH and after[1] - before[1] < 64
    assert after[2] - before[2] <= 40  # threads of the pool
    assert not list((tmp_path / "work").glob("uploads/*")) and os.listdir(tmp_path / "samples")
