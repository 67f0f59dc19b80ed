"""Secrets never reach a file that a run writes, a log line or a message; what only looks like one stays."""

import io
import json
import logging
import time
from pathlib import Path

import pytest

from megajukebox.common.provenance import made_by
from megajukebox.common.redaction import RedactingFilter, redact, redact_arguments, redacted
from megajukebox.records.events import RunStopped
from megajukebox.records.run_log import RunLog

# Made up, and in pieces, so that no scanner takes them for real.
HEX = "0123456789abcdef"
LONG = "Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2"  # 36 letters and digits
CANARIES = {  # secret -> the text that it stands in
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
    # Known by their own form.
    "github_" + "pat_11ABCDEFG0123456789_abcdefghij": "remote: {}",
    "gho_" + LONG: "cloned with {}",
    "glpat-" + "aB3dE6gH9jK2mN5pQ8sT": "git fetch with {}",
    "npm_" + LONG: "npm publish {}",
    "pypi-" + "AgEIcHlwaS5vcmcCJDAwMDAwMDAw" + LONG: "twine says {}",
    "dckr_" + "pat_abcDEF123-ghiJKL456": "docker login {}",
    "xoxb-" + "123456789012-abcdefABCDEF": "slack took {}",
    "xapp-" + "1-A0123456789-0123456789-abcdef": "app {}",
    "sk-" + "proj-abcdefghijkl0123456789": "openai: {}",
    "sk-" + "ant-api03-abcdefghijkl0123": "anthropic: {}",
    "sk_" + "live_abcdefghijkl0123": "stripe: {}",
    "SG." + "abcdefghijklmnop0123.abcdefghijklmnop0123": "mail with {}",
    "AIza" + "SyA-0123456789abcdefghijklmnopqrstu": "maps?key={}",
    "ya29." + "a0AfH6SMBx0123456789": "google {}",
    "GOCSPX-" + "abcdefghij0123456789": "client {}",
    "hvs." + "CAESIJabcdefghij0123": "vault {}",
    "123456789:" + "AAabcdefghijklmnopqrstuvwxyz0123456": "bot {}",
    "eyJhbGciOi" + "JIUzI1NiJ9.eyJzdWIiOiIxMjM0.c2lnbmF0dXJl": "job of {}",
    # Webhooks.
    "1234567890/AbCdEf-gh_ij": "https://discord.com/api/webhooks/{}",
    "0123abcd@4567/IncomingWebhook/89ab/cdef": "https://team.webhook.office.com/webhookb2/{}",
    "bot987654321:AAxyz0123456789": "https://api.telegram.org/{}/sendMessage",
    "123/abcdefg": "https://hooks.zapier.com/hooks/catch/{}",
    # Keys in letters.
    "MIIEowIBAAKCAQEAcanary": "-----BEGIN RSA PRIVATE "
    + "KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
    "lQOYBFcanary": "-----BEGIN PGP PRIVATE "
    + "KEY BLOCK-----\n\n{}\n-----END PGP PRIVATE KEY BLOCK-----",
    "b3BlbnNzaC1rZXkcanary": "-----BEGIN OPENSSH PRIVATE " + "KEY-----\n{}",
    # Known by the name before them.
    "tok-1a": "megajukebox train --token {} --preset tiny",
    "tok-1b": "megajukebox train --api-key={} --preset tiny",
    "tok-1c": "--hf-token '{}'",
    "two words": "mysql --password '{}' songs",
    "c2ln%2Bmore%3D": "https://x.blob.core.windows.net/c?sv=2024&sig={}&se=1",
    "acc-Tok-2": '{{"accessToken": "{}"}}',
    "cli-Sec-3": "clientSecret: {}",
    "ref-Tok-4": "refresh_token={}&grant_type=x",
    "pg-5": "PGPASSWORD={} psql",
    "acct+Key/6==": "DefaultEndpointsProtocol=https;AccountName=x;AccountKey={};EndpointSuffix=y",
    "pass word 7": "Server=db;Password={};Database=songs",
    "correct horse battery": "passphrase: {}",
    'ab\\"cd8': '{{"password": "{}", "step": 3}}',
    "esc-9": '"{{\\"password\\": \\"{}\\", \\"step\\": 3}}"',
    "list-10": '{{"password": ["{}"], "step": 3}}',
    "deep-11": '{{"secret": {{"value": "{}"}}}}',
    "sess-12": "Cookie: session={}; theme=dark",
    "sess-13": "Set-Cookie: sid={}; HttpOnly",
    "sess-14": "PHPSESSID={}; path=/",
    "dXNlcjpwYXNzd29yZA==": "Authorization: Basic {}",
    "0a1b2c3d4e": 'Authorization: Digest username="me", response="{}"',
    "x-key-15": "curl -H 'X-Api-Key: {}' https://host",
    "curl-16": "curl -u me:{} https://host",
    "p/q17": "https://user:{}@host/songs",
    "p@q18": "https://user:{}@host/songs",
    "p q19": "https://user:{}@host/songs",
    "enc-20": "next=https%3A%2F%2Fhost%2F%3Ftoken%3D{}",
    "sec-21": "aws_secret_access_key = {}",
    "sec-22": "AWS_SESSION_TOKEN={}",
    "sas-23": "sas_token: {}",
    "jwt-24": "SLURM_JWT={}",
    "pk-25": '{{"private_key": "{}"}}',
    "str-26": "connection_string='{}'",
    "cred-27": "X-Goog-Credential={}&x=1",
    "pat-28": "MY_PAT={} git push",
    "4/0AbCd-29": "https://host/callback?code={}&state=3",
    "9944b09199c62bcf9418ad846dd0e4bbdfc6ee30": "curl -H 'Authorization; Token {}'",
    "key-31": "the api key: {} is refused",
    "key-32": "Secret Key = {}",
    "rc-33": "machine api.host login me password {}",
    "rc-34": "machine api.host\n  login me\n  password {}\n",
    "hunter35": "mysqldump --user me -p{} songs",
    "hunter36": "sshpass -p {} ssh me@host",
    "hunter37": "mysql -u me -p{}",
}
HARMLESS = [
    "shard songs-000012.tar: frames at frame 7",
    "tokenizer: lyrics.model, tokens: 256",
    "tokens_per_second 512.0",
    "author: Tessaly Quill",
    "https://host/songs/train-{000000..000099}.tar",
    "step-00000100: state.json has another checksum 0123abcd",
    f"sha256 {HEX * 4} of checkpoints/step-00000100/model.safetensors",
    f"commit {HEX * 2}01234567-dirty, fingerprint: {HEX * 4}",
    "seconds_per_token: 0.013, forward_pass=0.42 s, first_token: 12",
    '{"step": 100, "loss": 3.2, "tokens": 4096, "pass": 2}',
    "/data/secret-songs/token-test/metrics.jsonl",
    "--data-token-file /data/me/.megajukebox-token --webhook-file url.txt",
    "key: the-song-1a2b3c4d, monkey=3, keyword: blue",
    "the secret garden, a cookie, a token of love",
    "basic training is over, bearer of good news",
    "https://host:8443/songs/@live/x.tar, mailto:a@b.org, me@host:/songs",
    "2026-11-30 12:00:00 rank 3: pass 2 of 4 begins",
    "runs/sk-learn-baseline/heartbeats/rank0.json",
    "hops: [8, 32, 128], sizes: {top: 1}",
    "ssh -p 2222 host, mkdir -p/songs/a, rsync -progress",
    "a token of-an-instrument, Token unclear-without-digits",
    "machine learning needs a login and a password of its own",
    "python -c code=5; exit code=93; the code: 4",
    "a pat on the back, pat: 3, path=/songs, pattern=x, spat=y",
    "the main key: C minor, key: A, keys = 3",
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
    assert redacted({"password": ["x"], "secret": {"a": ("y", 3)}}) == {
        "password": ["[hidden]"],
        "secret": {"a": ("[hidden]", 3)},
    }


def test_a_secret_that_is_an_argument_of_its_own_is_hidden_with_the_spaces_in_it() -> None:
    command = [
        "train",
        "--hf-token",
        "x y",
        "--password",
        "-odd one",
        "--token-file",
        "a b",
        "--out",
        "r",
    ]
    hidden = [
        "train",
        "--hf-token",
        "[hidden]",
        "--password",
        "[hidden]",
        "--token-file",
        "a b",
        "--out",
        "r",
    ]
    assert redacted(command) == hidden and redact_arguments(command) == " ".join(hidden)
    assert redacted([("Authorization", "x"), ("Accept", "x")]) == [
        ("Authorization", "[hidden]"),
        ("Accept", "x"),
    ]


def test_an_argument_that_names_its_secret_is_hidden_to_its_end() -> None:
    shown = redact_arguments(["--password=two words", "--tokens=a b", "--data=/a b"])
    assert shown == "--password=[hidden] --tokens=a b --data=/a b"


def test_json_stays_json_when_its_secrets_go() -> None:
    record = {"api_key": 'a"b', "steps": [1, 2], "note": "token=abc and more"}
    hidden = json.loads(redact(json.dumps(record)))
    assert hidden == {"api_key": "[hidden]", "steps": [1, 2], "note": "token=[hidden] and more"}


LONG_LINES = (
    "a",
    "a-",
    "a.b_",
    "QUJD/+",
    "token=",
    'token="',
    "token='\\",
    "password: ",
    "password=a ",
    "password=[",
    "--token ",
    "eyJaaaaaaaaaa-",
    "eyJaaaaaaaaa.",
    "://",
    "://a:",
    "://a:b@",
    "-----BEGIN ",
    "-----BEGIN PRIVATE KEY-----",
    "bearer ",
    "basic aaaaaaa",
    "-u a:",
    "\\",
    '\\"',
    " ",
    "\n",
    "{[",
    "authorization: digest ",
    "123456789:",
    "SG.aaaaaaaaaaaaaaaa",
)


@pytest.mark.parametrize("piece", LONG_LINES)
def test_redaction_takes_time_in_proportion_to_the_text(piece: str) -> None:
    short, long = (piece * (size // len(piece)) for size in (10_000, 100_000))

    def seconds(text: str) -> float:
        started = time.process_time()
        redact(text)
        return time.process_time() - started

    # The square of ten times the text is a hundred times the time; 5 ms cover what the clock cannot see.
    assert seconds(long) < 30 * max(min(seconds(short) for _ in range(2)), 0.005)


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
