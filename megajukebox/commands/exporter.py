"""Runs as Prometheus metrics, from their folders alone: it can never break a run, and works for dead ones too.

    megajukebox exporter runs/                                            # http://127.0.0.1:9464/metrics
    megajukebox exporter runs/ --listen 0.0.0.0:9464 --token-file token   # for a Prometheus on another machine
    megajukebox exporter runs/ --textfile /var/lib/node_exporter          # a file for node_exporter, every 15 s
    megajukebox exporter runs/ --textfile . --once                        # one file, and out: for cron
    megajukebox exporter --textfile /var/lib/node_exporter                # on a compute node: its GPUs alone
    megajukebox exporter runs/ --webhook-file url.txt                     # POSTs of alerts, restarts and ends too
    megajukebox exporter runs/ --legacy-names                             # for dashboards of version 1: old names too

Rules, a dashboard, and the scrape config are in monitoring/; what each alert means is in docs/RUNBOOK.md.
"""

import contextlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from prometheus_client import Metric
from prometheus_client.registry import Collector

from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.files import write_atomic
from megajukebox.common.logging import setup_logging
from megajukebox.monitoring import threshold_options
from megajukebox.monitoring.collect.host import Machine, machine
from megajukebox.monitoring.collect.run_reader import Runs
from megajukebox.monitoring.collect.run_state import AlertThresholds
from megajukebox.monitoring.exporters import prometheus
from megajukebox.monitoring.exporters.metrics_server import (
    MetricsServer,
    application,
    parse_address,
    read_token,
)
from megajukebox.monitoring.exporters.webhooks import News, Webhook, read_url

TEXTFILE = "megajukebox.prom"
WEBHOOK_SECONDS = 10.0  # between looks for news, at most


@dataclass(eq=False)  # a registry keys collectors by identity
class Exporter(Collector):
    """Collects the metrics; the machine is asked at most every `every` seconds, since nvidia-smi takes one."""

    runs: Runs | None
    webhook: Webhook | None = None
    every: float = 15.0
    legacy_names: bool = False
    news: News = field(default_factory=News)
    machine: tuple[float, Machine] | None = None  # when it was asked, and its answer
    lock: threading.Lock = field(default_factory=threading.Lock)

    def collect(self) -> list[Metric]:
        """One request at a time."""
        with self.lock:
            runs = self.runs.read() if self.runs else []
            if self.machine is None or time.monotonic() - self.machine[0] > self.every:
                self.machine = (time.monotonic(), machine())
            failures = self.webhook.failures if self.webhook else 0
            return prometheus.families(runs, self.machine[1], failures, self.legacy_names)

    def post_news(self) -> None:
        """POST what is new."""
        with self.lock:
            messages = self.news.of(self.runs.read()) if self.runs and self.webhook else []
        for message in messages:
            if self.webhook:
                self.webhook.post(message)


def main(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs, or single runs.")
    ] = None,
    listen: Annotated[str, typer.Option(help="Address and port.")] = "127.0.0.1:9464",
    token_file: Annotated[
        Path | None, typer.Option(help="File with a secret that clients must send; mode 600.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Another name that clients may call the exporter by, as a proxy on loopback does; repeatable."
        ),
    ] = None,
    textfile: Annotated[
        Path | None, typer.Option(help="Write a file into this folder instead of listening.")
    ] = None,
    every: Annotated[
        float, typer.Option(min=0.2, help="Seconds between files, and between looks at the GPUs.")
    ] = 15.0,
    once: Annotated[
        bool, typer.Option("--once", help="With --textfile: write once and exit.")
    ] = False,
    webhook_file: Annotated[
        Path | None, typer.Option(help="File with the URL for POSTs; mode 600.")
    ] = None,
    legacy_names: Annotated[
        bool,
        typer.Option("--legacy-names", help="Export metrics under their names of version 1 too."),
    ] = False,
    stall: threshold_options.Stall = 120,
    silent: threshold_options.Silent = 60,
    checkpoint: threshold_options.Checkpoint = 300,
    down: threshold_options.Down = 900,
) -> None:
    """Serve (or write) the metrics of all runs in and under RUNS."""
    setup_logging("exporter", timestamps=True)
    thresholds = AlertThresholds(stall=stall, silent=silent, checkpoint=checkpoint, down=down)
    url = read_url(webhook_file)
    exporter = Exporter(
        Runs(runs, thresholds) if runs else None,
        Webhook(url) if url else None,
        every,
        legacy_names,
    )
    if not textfile:
        serve(exporter, listen, token_file, allow_host or [])
        return
    if not textfile.is_dir():
        raise UserError(
            f"--textfile {textfile} is not a folder; give the one of node_exporter's textfile collector"
        )
    while True:  # each file is whole whenever node_exporter reads it
        write_atomic(textfile / TEXTFILE, prometheus.page(exporter.collect()))
        exporter.post_news()
        if once:
            return
        time.sleep(exporter.every)


def serve(
    exporter: Exporter, listen: str, token_file: Path | None, allowed_hosts: list[str]
) -> None:
    token = read_token(token_file)
    address = parse_address(listen, token)
    try:
        names = [name.lower() for name in allowed_hosts]
        server = MetricsServer(address, application(exporter, token, names))
    except OSError as error:
        raise UserError(f"--listen {listen}: {error.strerror or error}") from error
    host, port = server.server_address[:2]
    print(f"metrics at http://{host!s}:{port}/metrics", flush=True)
    if exporter.webhook:
        threading.Thread(target=keep_posting, args=(exporter,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


def keep_posting(exporter: Exporter) -> None:
    while True:
        exporter.post_news()
        time.sleep(min(exporter.every, WEBHOOK_SECONDS))


if __name__ == "__main__":
    run_command(main, "exporter")
