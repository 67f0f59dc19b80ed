"""A real Prometheus, the exporter, and real tiny runs: what the monitoring is tried on. Everything beats fast."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import yaml
from conftest import PRESET, environment

import megajukebox
from megajukebox.training.launch import free_port

REPOSITORY = Path(__file__).parents[1]
TRAIN = str(Path(megajukebox.__file__).parent / "train.py")
FAULTY = str(Path(__file__).parent / "faulty_train.py")
FASTER = 60  # times that rules are faster than those shipped: a minute is a second
LIMITS = [
    "--stall",
    "15",
    "--silent",
    "12",
    "--checkpoint",
    "4",
    "--down",
    "8",
    "--every",
    "2",
]  # a rank beats every 5 s


def faster(rules: str, times: int = FASTER) -> str:
    """The rules with every duration (for:, ranges, offsets) divided, to whole milliseconds.

    And the time that a trend is drawn on. But not that over which restarts are counted: processes do not start faster
    here than elsewhere.
    """
    units = {"s": 1000, "m": 60_000, "h": 3_600_000}

    def short(found: re.Match[str]) -> str:
        return f"{found[1]}{max(1000, int(found[2]) * units[found[3]] // times)}ms{found[4]}"

    def sooner(found: re.Match[str]) -> str:
        return f"{found[1]}{math.prod(map(int, found[2].split('*'))) // times})"

    rules = re.sub(r"(predict_linear\([^,]+, )([\d *]+)\)", sooner, rules)
    return re.sub(r"(?<!restarts_total)(for: |\[|offset )(\d+)([smh])(\b|\])", short, rules)


class Rig:
    """Starts all of it in a folder, asks Prometheus, ends what it started."""

    def __init__(self, folder: Path, songs: Path, interval: str = "1s", alertmanager: int | None = None) -> None:
        """`alertmanager` is the port of one that Prometheus sends its alerts to."""
        self.folder, self.songs, self.interval, self.alertmanager = folder, songs, interval, alertmanager
        self.runs = folder / "runs"
        self.runs.mkdir(parents=True)
        self.exporter_port, self.port = free_port(), free_port()
        self.children: list[subprocess.Popen] = []
        self.exporter = self.start_exporter()
        self.prometheus = self.start_prometheus()

    # ---- What runs -----------------------------------------------------------------------------------------------

    def start(self, *command: str, log: str) -> subprocess.Popen:
        """A process group of its own, its output in a file."""
        with (self.folder / f"{log}.log").open("ab") as out:
            child = subprocess.Popen(command, env=environment(), stdout=out, stderr=out, start_new_session=True)
        self.children.append(child)
        return child

    def start_exporter(self, *more: str) -> subprocess.Popen:
        listen = ["--listen", f"127.0.0.1:{self.exporter_port}"]
        entry = [sys.executable, "-m", "megajukebox.exporter", str(self.runs)]
        return self.start(*entry, *listen, *LIMITS, *more, log="exporter")

    def start_prometheus(self) -> subprocess.Popen:
        (self.folder / "rules.yml").write_text(faster((REPOSITORY / "monitoring" / "rules.yml").read_text()))
        target = [f"127.0.0.1:{self.exporter_port}"]
        settings: dict[str, object] = {
            "global": {"scrape_interval": self.interval, "evaluation_interval": self.interval},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "megajukebox", "static_configs": [{"targets": target}]}],
        }
        if self.alertmanager:
            to = [{"targets": [f"127.0.0.1:{self.alertmanager}"]}]
            settings["alerting"] = {"alertmanagers": [{"static_configs": to}]}
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        return self.start(
            "prometheus", f"--config.file={self.folder}/prometheus.yml", f"--storage.tsdb.path={self.folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{self.port}", "--rules.alert.resend-delay=1s", log="prometheus",
        )  # fmt: skip

    def train(
        self, name: str, *settings: str, ranks: int = 1, fault: str = "", steps: int = 4000,
        stage: str = "vqvae", preset: Path = PRESET,
    ) -> subprocess.Popen:  # fmt: skip
        """A tiny VQ-VAE, or another stage of a preset, in the folder runs/`name`, in the background."""
        program = [FAULTY, fault] if fault else [TRAIN]
        if ranks > 1:
            deepspeed = shutil.which("deepspeed", path=environment()["PATH"])
            port = str(free_port())
            launcher = [str(deepspeed), "--log_level", "warning", "--num_gpus", str(ranks), "--master_port", port]
        else:
            launcher = [sys.executable]
        asked = ["--preset", str(preset), "--data", str(self.songs), "--out", str(self.runs / name)]
        (self.runs / name).mkdir(parents=True, exist_ok=True)
        small = [f"training.{stage}.{s}" for s in (f"steps={steps}", "save_every=20", "evaluate_every=1000", *settings)]
        return self.start(*launcher, *program, stage, *asked, *small, log=name)

    def end(self, child: subprocess.Popen, how: int = signal.SIGKILL) -> None:
        """The whole group: the launcher's ranks are its children."""
        try:
            os.killpg(child.pid, how)
        except ProcessLookupError:
            return
        child.wait(120)

    def end_all(self) -> None:
        for child in self.children:
            self.end(child)

    # ---- What Prometheus says ------------------------------------------------------------------------------------

    def ask(self, path: str, **arguments: str) -> dict:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.loads(answer.read())["data"]

    def query(self, expression: str) -> list[dict]:
        return self.ask("query", query=expression)["result"]

    def firing(self, run: str | None = None) -> set[str]:
        """Names of the alerts that fire (of one run)."""
        found = [a["labels"] for a in self.ask("alerts")["alerts"] if a["state"] == "firing"]
        return {a["alertname"] for a in found if run is None or a.get("run") == run} - {"JukeboxWatchdog"}

    def wait(self, what: Callable[[], object], seconds: float, every: float = 0.3) -> float:
        """Until `what` is true; the time at which it was. AssertionError if it does not come."""
        until = time.time() + seconds
        while time.time() < until:
            with contextlib.suppress(OSError):  # not listening yet
                if what():
                    return time.time()
            time.sleep(every)
        logs = "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in self.folder.glob("*.log"))
        raise AssertionError(f"did not come within {seconds} s; firing: {self.firing()}\n{logs}")

    def wait_for_step(self, name: str, step: int, seconds: float = 240) -> None:
        pattern = f'megajukebox_step{{run="{name}"}} >= {step}'
        self.wait(lambda: self.query(pattern), seconds)

    def pids(self, name: str) -> dict[int, int]:
        """Process ids by rank, as the heartbeats tell them."""
        beats = [json.loads(path.read_text()) for path in (self.runs / name / "heartbeats").glob("rank-*.json")]
        return {beat["rank"]: beat["pid"] for beat in beats}
