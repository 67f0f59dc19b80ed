"""Write monitoring/rules.yml, monitoring/dashboard.json and the tables of the docs from the tables of metrics and alerts.

python -m megajukebox.monitoring.generate          # in the repository; `make monitoring` does the same
python -m megajukebox.monitoring.generate --check  # exit 1 if a file is not what the tables say
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from megajukebox.monitoring.alerts import ALERTS, RUNBOOK, AlertRow
from megajukebox.monitoring.collect.host import GPU_FIGURES
from megajukebox.monitoring.legacy_names import LEGACY_ALERTS, LEGACY_METRICS
from megajukebox.monitoring.metrics import DASHBOARD_ROWS, METRICS, PREFIX, RUN, MetricRow, Panel

RULES = "monitoring/rules.yml"
DASHBOARD = "monitoring/dashboard.json"
METRICS_DOCS = "docs/monitoring.md"
PANELS_A_ROW = 3
PANEL_WIDTH = 8  # of the 24 columns of a dashboard
PANEL_HEIGHT = 8
# Panels of the machine that the exporter runs on: (row, title, unit, query, legend).
GPU_PANELS = {
    "utilization_ratio": ("GPU utilization", "percentunit"),
    "memory_used_bytes": ("GPU memory", "bytes"),
    "temperature_celsius": ("GPU temperature", "celsius"),
}
# Panels of several metrics: title, unit, query, legend.
COMMUNICATION = Panel(
    "Where did time go?",
    "Share of a step in communication",
    "percentunit",
    f'{PREFIX}step_part_seconds{{{RUN}, part="communication"}}'
    f' / on(run) sum by (run) ({PREFIX}step_part_seconds{{{RUN}, part!="save"}})',
    "{{run}}",
)
HOST_MEMORY = Panel(
    "Data and disk",
    "Memory left on the machine",
    "bytes",
    f"{PREFIX}host_memory_available_bytes",
    "{{node}}",
)
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# What a viewer of the dashboard chooses: the Prometheus, and the runs.
VARIABLES = [
    {"name": "datasource", "type": "datasource", "query": "prometheus"},
    {
        "name": "run",
        "type": "query",
        "datasource": SOURCE,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
        "query": {"query": f"label_values({PREFIX}step, run)", "refId": "run"},
    },
]
# Marks on the time line where an alert fired.
FIRED_ALERTS = {
    "name": "alerts",
    "enable": True,
    "datasource": SOURCE,
    "expr": 'ALERTS{alertstate="firing", alertname=~"Jukebox.+", alertname!="JukeboxWatchdog"}',
    "titleFormat": "{{alertname}}",
    "textFormat": "{{run}}",
    "iconColor": "red",
    "step": "60s",
}
RULES_HEAD = f"""\
# Generated from the table ALERTS of megajukebox/monitoring/alerts.py by `make monitoring`: do not edit.
# Each alert has a paragraph of the same name in {RUNBOOK}: what it means, how to confirm, what to do.
#   promtool check rules monitoring/rules.yml && promtool test rules monitoring/rules_test.yml
# page: now, at night too. ticket: in working hours. Thresholds that depend on a run's speed (how long is too long
# without a step, when a checkpoint is stale) come from the exporter as metrics, so that `megajukebox watch` has the same.
groups:
"""


# ---- Rules ------------------------------------------------------------------------------------------------------------


def rules_yml(table: Iterable[AlertRow] = ALERTS) -> str:
    """The rules of Prometheus, a group for each question."""
    groups: dict[str, list[AlertRow]] = {}
    for row in table:
        groups.setdefault(row.group, []).append(row)
    parts = []
    for group, rows in groups.items():
        part = f"  - name: megajukebox-{group.replace(' ', '-')}\n    rules:\n"
        for row in rows:
            lines = [f"- alert: {row.name}"]
            if row.comment:
                lines.append(f"  # {row.comment}")
            lines.append("  expr: |")
            lines += [f"    {line}" for line in row.promql.splitlines()]
            if row.for_:
                lines.append(f"  for: {row.for_}")
            lines += [
                f"  labels: {{severity: {row.severity}}}",
                "  annotations:",
                f"    summary: {json.dumps(row.summary)}",
                f"    runbook: {RUNBOOK}#{row.name.lower()}",
            ]
            part += "".join(f"      {line}\n" for line in lines)
        parts.append(part)
    return RULES_HEAD + "\n".join(parts)


# ---- Dashboard --------------------------------------------------------------------------------------------------------


def panels_of(table: Iterable[MetricRow]) -> list[tuple[Panel, str, str]]:
    """Every panel with its query and legend."""
    panels = []
    for row in table:
        if row.panel is not None:
            ending = "_total" if row.kind == "counter" else ""
            metric = f"{PREFIX}{row.name}{ending}{{{RUN}}}"
            query = row.panel.query.replace("{metric}", metric)
            labels = " ".join(f"{{{{{label}}}}}" for label in ("run", *row.labels))
            panels.append((row.panel, query, row.panel.legend or labels))
    for panel in (COMMUNICATION, HOST_MEMORY):
        panels.append((panel, panel.query, panel.legend or ""))
    for figure in GPU_FIGURES:
        if figure.name in GPU_PANELS:
            title, unit = GPU_PANELS[figure.name]
            panel = Panel("Who is slow, who is silent?", title, unit)
            panels.append((panel, f"{PREFIX}gpu_{figure.name}", "{{node}} {{gpu}}"))
    return panels


def dashboard(table: Iterable[MetricRow] = METRICS) -> dict[str, Any]:
    """Grafana's dashboard: a row for each question. Nothing fills a gap with 0: what was not measured is not drawn."""
    panels = panels_of(table)
    drawn: list[dict[str, Any]] = []
    top = 0
    for title in DASHBOARD_ROWS:
        heading = {
            "type": "row",
            "title": title,
            "id": len(drawn) + 1,
            "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
            "collapsed": False,
            "panels": [],
        }
        drawn.append(heading)
        top += 1
        in_row = [panel for panel in panels if panel[0].row == title]
        for index, (panel, query, legend) in enumerate(in_row):
            position = {
                "x": index % PANELS_A_ROW * PANEL_WIDTH,
                "y": top + index // PANELS_A_ROW * PANEL_HEIGHT,
                "w": PANEL_WIDTH,
                "h": PANEL_HEIGHT,
            }
            drawn.append(dashboard_panel(len(drawn) + 1, panel, query, legend, position))
        top += -(-len(in_row) // PANELS_A_ROW) * PANEL_HEIGHT
    return {
        "title": "megajukebox",
        "uid": "megajukebox",
        "schemaVersion": 38,
        "version": 2,
        "refresh": "30s",
        "time": {"from": "now-24h", "to": "now"},
        "timezone": "browser",
        "tags": ["megajukebox"],
        "templating": {"list": VARIABLES},
        "annotations": {"list": [FIRED_ALERTS]},
        "panels": drawn,
    }


def dashboard_panel(
    number: int, panel: Panel, query: str, legend: str, position: dict[str, int]
) -> dict[str, Any]:
    target = {"refId": "A", "datasource": SOURCE, "expr": query, "legendFormat": legend}
    return {
        "type": "timeseries",
        "id": number,
        "title": panel.title,
        "gridPos": position,
        "datasource": SOURCE,
        "targets": [target],
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": {"lineWidth": 1}, "noValue": "not measured"},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi"},
        },
    }


# ---- Docs -------------------------------------------------------------------------------------------------------------


def runbook_index(table: Iterable[AlertRow] = ALERTS) -> str:
    """A line for each alert: where it leads, whom it wakes, what to do first."""
    lines = ["| alert | severity | do first |", "| --- | --- | --- |"]
    for row in table:
        lines.append(f"| [{row.name}](#{row.name.lower()}) | {row.severity} | {row.action} |")
    return "\n".join(lines)


def metrics_list(table: Iterable[MetricRow] = METRICS) -> str:
    """Every metric: name, type, labels, help."""
    lines = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for row in table:
        ending = "_total" if row.kind == "counter" else ""
        labels = ", ".join(row.labels)
        lines.append(f"| `{row.name}{ending}` | {row.kind} | {labels} | {row.help} |")
    return "\n".join(lines)


def renamed_list() -> str:
    """Metrics and alerts of version 1 and their names of today."""
    lines = ["| version 1 | now |", "| --- | --- |"]
    for legacy in LEGACY_METRICS:
        total = "_total" if legacy.kind == "counter" else ""
        now = next(row for row in METRICS if row.name == legacy.now)
        ending = "_total" if now.kind == "counter" else ""
        lines.append(f"| `{PREFIX}{legacy.name}{total}` | `{PREFIX}{legacy.now}{ending}` |")
    for before, alert in LEGACY_ALERTS.items():
        lines.append(f"| alert `{before}` | `{alert}` |")
    return "\n".join(lines)


def with_section(text: str, name: str, content: str) -> str:
    """`text` with what stands between the marks of a generated section replaced."""
    begin = f"<!-- generated: {name} -->"
    end = f"<!-- end: {name} -->"
    section = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    assert section.search(text), f"no section {name}"
    return section.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def generated_files(repository: Path) -> dict[Path, str]:
    """Every generated file as it must be."""
    runbook = (repository / RUNBOOK).read_text()
    docs = (repository / METRICS_DOCS).read_text()
    docs = with_section(docs, "metrics", metrics_list())
    docs = with_section(docs, "renamed", renamed_list())
    return {
        repository / RULES: rules_yml(),
        repository / DASHBOARD: json.dumps(dashboard(), indent=1) + "\n",
        repository / RUNBOOK: with_section(runbook, "index", runbook_index()),
        repository / METRICS_DOCS: docs,
    }


def main(
    repository: Annotated[Path, typer.Option(help="Folder of the repository.")] = Path(),
    check: Annotated[bool, typer.Option("--check", help="Compare only; exit 1 if stale.")] = False,
) -> None:
    """Write the generated files."""
    stale = []
    for path, content in generated_files(repository).items():
        if not path.exists() or path.read_text() != content:
            stale.append(str(path))
            if not check:
                path.write_text(content)
    print("\n".join(stale) or "nothing to do: all files are as the tables say")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    typer.run(main)
