"""Secrets never reach a file that a run writes, a log line or a message; what only looks like one stays."""

import io
import json
import logging
from pathlib import Path

import pytest

from megajukebox.common.provenance import made_by
from megajukebox.common.redaction import RedactingFilter, redact, redacted
from megajukebox.records.events import RunStopped
from megajukebox.records.run_log import RunLog

# Made up, and in pieces, so that no scanner takes them for real.
CANARIES = {
    "hf_" + "abcdefghijklmnopqrstuvwxyz": "cannot read {}",
    "AKIA" + "IOSFODNN7EXAMPLE": "key {} was refused",
    "ghp_" + "0123456789abcdef0123456789abcdef0123": "git clone with {}",
    "0123456789abcdef0123456789abcdef01234567": "WANDB_API_KEY={} megajukebox train",
    "s3cr3t": "https://user:{}@host/songs",
    "deadbeef99": "https://bucket/x.tar?X-Amz-Expires=9&X-Amz-Signature={}&y=1",
    "hunter2": "password: {}",
    "sesame-sesame": '{{"api_key": "{}", "step": 3}}',
    "abc.def-123": "Authorization: Bearer {}",
    "B00/T00/xyz": "https://hooks.slack.com/services/{}",
    "eyJhbGciOi" + "J9abc.eyJzdWIi0i.sig": "token={}",
}
HARMLESS = [
    "shard songs-000012.tar: frames at frame 7",
    "tokenizer: lyrics.model, tokens: 256",
    "tokens_per_second 512.0",
    "author: Tessaly Quill",
    "https://host/songs/train-{000000..000099}.tar",
    "step-00000100: state.json has another checksum 0123abcd",
]


@pytest.mark.parametrize(
    ("secret", "text"), CANARIES.items(), ids=[text[:20] for text in CANARIES.values()]
)
def test_a_secret_is_hidden_and_the_rest_stays(secret: str, text: str) -> None:
    hidden = redact(text.format(secret))
    assert secret not in hidden and "[hidden]" in hidden
    assert redact(hidden) == hidden


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_a_field_that_is_called_a_secret_is_hidden_whole() -> None:
    record = {
        "WANDB_API_KEY": "x y z",
        "tokens": 3,
        "deep": [{"password": "a"}, {"tokenizer": "lyrics.model"}],
    }
    assert redacted(record) == {
        "WANDB_API_KEY": "[hidden]",
        "tokens": 3,
        "deep": [{"password": "[hidden]"}, {"tokenizer": "lyrics.model"}],
    }


def test_events_of_a_run_hold_no_secret(tmp_path: Path) -> None:
    log = RunLog(tmp_path, writes=True)
    for secret, text in CANARIES.items():
        log.event(RunStopped(step=1, reason=text.format(secret)))
        log.bad_sample(text.format(secret), "song", "other", text.format(secret))
    written = (tmp_path / "events.jsonl").read_text()
    assert not [secret for secret in CANARIES if secret in written]
    assert all(json.loads(line) for line in written.splitlines())


def test_the_command_that_is_kept_in_every_output_holds_no_secret(monkeypatch) -> None:
    monkeypatch.setattr(
        "sys.argv",
        ["/opt/train.py", "--data", "https://me:hunter2@host/songs", "--cache", "/local"],
    )
    assert made_by()["command"] == "train.py --data https://[hidden]@host/songs --cache /local"


def test_log_lines_and_tracebacks_hold_no_secret() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RedactingFilter())
    logger = logging.Logger("redaction")
    logger.addHandler(handler)
    for secret, text in CANARIES.items():
        logger.warning("told %s", text.format(secret))
        try:
            raise ValueError(text.format(secret))
        except ValueError:
            logger.exception("raised")
    assert not [secret for secret in CANARIES if secret in stream.getvalue()]
    assert stream.getvalue().count("Traceback") == len(CANARIES)
