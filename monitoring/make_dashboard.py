"""Writes monitoring/dashboard.json for Grafana; rows in the order of the questions that somebody on call asks.

python monitoring/make_dashboard.py            # then import the file in Grafana, or provision it
"""

import json
from pathlib import Path

RUN = 'run=~"$run"'
# row -> panels: title, unit, {legend: query}
ROWS: dict[str, list[tuple[str, str, dict[str, str]]]] = {
    "Is it moving?": [
        ("Status", "short", {"{{run}} {{status}}": f"megajukebox_status{{{RUN}}} == 1"}),
        (
            "Progress",
            "percentunit",
            {"{{run}}": f"megajukebox_step{{{RUN}}} / megajukebox_target_steps{{{RUN}}}"},
        ),
        (
            "Age of the last step",
            "s",
            {"{{run}}": f"time() - megajukebox_last_step_timestamp_seconds{{{RUN}}}"},
        ),
        ("Time left", "s", {"{{run}}": f"megajukebox_eta_seconds{{{RUN}}}"}),
        ("Time left of the job", "s", {"{{run}}": f"megajukebox_job_time_left_seconds{{{RUN}}}"}),
        ("Jobs queued after it", "short", {"{{run}}": f"megajukebox_chain_queued{{{RUN}}}"}),
        ("Problems", "short", {"{{run}} {{alert}}": f"megajukebox_problem{{{RUN}}} or vector(0)"}),
    ],
    "Is it healthy?": [
        ("Loss", "none", {"{{run}} {{split}} {{level}}": f"megajukebox_loss{{{RUN}}}"}),
        (
            "Bits per code",
            "none",
            {"{{run}} {{split}}": f"megajukebox_bits_per_code{{{RUN}}} or vector(0)"},
        ),
        ("Gradient norm", "none", {"{{run}}": f"megajukebox_grad_norm{{{RUN}}}"}),
        ("Learning rate", "none", {"{{run}}": f"megajukebox_learning_rate{{{RUN}}}"}),
        ("Spike score", "none", {"{{run}}": f"megajukebox_spike_score{{{RUN}}}"}),
        ("Loss scale (fp16)", "none", {"{{run}}": f"megajukebox_loss_scale{{{RUN}}} or vector(0)"}),
        (
            "Skipped steps",
            "short",
            {"{{run}} {{reason}}": f"megajukebox_steps_skipped_total{{{RUN}}}"},
        ),
        (
            "Codebook usage",
            "percentunit",
            {"{{run}} {{level}}": f"megajukebox_codebook_usage_ratio{{{RUN}}}"},
        ),
        (
            "Codebook entropy",
            "bits",
            {"{{run}} {{level}}": f"megajukebox_codebook_entropy_bits{{{RUN}}}"},
        ),
        ("Dead codes", "short", {"{{run}} {{level}}": f"megajukebox_codebook_dead_codes{{{RUN}}}"}),
        (
            "Everything else it logs",
            "none",
            {"{{run}} {{split}} {{name}}": f"megajukebox_metric{{{RUN}}}"},
        ),
    ],
    "Where did time go?": [
        ("Goodput", "percentunit", {"{{run}} {{window}}": f"megajukebox_goodput_ratio{{{RUN}}}"}),
        (
            "Wall clock since the first start",
            "s",
            {"{{run}} {{phase}}": f"megajukebox_time_seconds_total{{{RUN}}}"},
        ),
        ("A step", "s", {"{{run}} {{part}}": f"megajukebox_step_part_seconds{{{RUN}}}"}),
        (
            "Share of a step in communication",
            "percentunit",
            {
                "{{run}}": f'megajukebox_step_part_seconds{{{RUN}, part="communication"}}'
                f' / on(run) sum by (run) (megajukebox_step_part_seconds{{{RUN}, part!="save"}})'
            },
        ),
        (
            "Slow steps (95 %)",
            "s",
            {
                "{{run}}": f"histogram_quantile(0.95, sum by (run, le) (megajukebox_step_seconds_bucket{{{RUN}}}))"
            },
        ),
        (
            "Audio seconds per second",
            "none",
            {"{{run}}": f"megajukebox_audio_seconds_per_second{{{RUN}}}"},
        ),
        (
            "Codes per second",
            "none",
            {"{{run}}": f"megajukebox_tokens_per_second{{{RUN}}} or vector(0)"},
        ),
        (
            "Utilisation (MFU)",
            "percentunit",
            {"{{run}}": f"megajukebox_model_flops_utilization_ratio{{{RUN}}} or vector(0)"},
        ),
    ],
    "Can we lose the machine now?": [
        (
            "Age of the newest checkpoint",
            "s",
            {"{{run}}": f"time() - megajukebox_last_checkpoint_timestamp_seconds{{{RUN}}}"},
        ),
        (
            "Checkpoints that are whole",
            "short",
            {"{{run}}": f"megajukebox_checkpoint_valid_count{{{RUN}}}"},
        ),
        (
            "Size of a checkpoint",
            "bytes",
            {"{{run}}": f"megajukebox_last_checkpoint_bytes{{{RUN}}}"},
        ),
        (
            "Time of a save (mean)",
            "s",
            {
                "{{run}}": f"megajukebox_checkpoint_save_seconds_sum{{{RUN}}}"
                f" / megajukebox_checkpoint_save_seconds_count{{{RUN}}}"
            },
        ),
        ("Saves", "short", {"{{run}} {{result}}": f"megajukebox_checkpoints_total{{{RUN}}}"}),
        ("Restarts", "short", {"{{run}} {{reason}}": f"megajukebox_restarts_total{{{RUN}}}"}),
        ("Steps trained again", "short", {"{{run}}": f"megajukebox_wasted_steps_total{{{RUN}}}"}),
    ],
    "Who is slow, who is silent?": [
        (
            "Slowdown of each rank",
            "none",
            {"{{run}} {{rank}} {{host}}": f"megajukebox_rank_slowdown_ratio{{{RUN}}}"},
        ),
        (
            "Communication of each rank, waits included",
            "s",
            {"{{run}} {{rank}} {{host}}": f"megajukebox_rank_communication_seconds{{{RUN}}}"},
        ),
        (
            "Age of each rank's heartbeat",
            "s",
            {
                "{{run}} {{rank}} {{host}}": f"time() - megajukebox_rank_heartbeat_timestamp_seconds{{{RUN}}}"
            },
        ),
        ("Memory of rank 0", "bytes", {"{{run}} {{kind}}": f"megajukebox_memory_bytes{{{RUN}}}"}),
        (
            "GPU utilisation",
            "percentunit",
            {"{{node}} {{gpu}}": "megajukebox_gpu_utilization_ratio or vector(0)"},
        ),
        (
            "GPU memory",
            "bytes",
            {"{{node}} {{gpu}}": "megajukebox_gpu_memory_used_bytes or vector(0)"},
        ),
        (
            "GPU temperature",
            "celsius",
            {"{{node}} {{gpu}}": "megajukebox_gpu_temperature_celsius or vector(0)"},
        ),
    ],
    "Data and disk": [
        ("Waiting for data", "percentunit", {"{{run}}": f"megajukebox_data_wait_ratio{{{RUN}}}"}),
        (
            "Clips that could not be read",
            "percentunit",
            {"{{run}}": f"megajukebox_bad_samples_ratio{{{RUN}}}"},
        ),
        (
            "Such clips, by reason",
            "short",
            {"{{run}} {{reason}}": f"megajukebox_bad_samples_total{{{RUN}}} or vector(0)"},
        ),
        (
            "Free space",
            "bytes",
            {"{{mount}}": f"max by (mount) (megajukebox_fs_free_bytes{{{RUN}}})"},
        ),
        (
            "Memory left on the machine",
            "bytes",
            {"{{node}}": "megajukebox_host_memory_available_bytes"},
        ),
    ],
}


def dashboard() -> dict:
    panels: list[dict] = []
    for row, content in ROWS.items():
        top = panels[-1]["gridPos"]["y"] + 8 if panels else 0
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        panels.append(
            {
                "type": "row",
                "title": row,
                "id": len(panels) + 1,
                "gridPos": place,
                "collapsed": False,
                "panels": [],
            }
        )
        for number, (title, unit, queries) in enumerate(content):
            place = {"x": number % 3 * 8, "y": top + 1 + number // 3 * 8, "w": 8, "h": 8}
            panels.append(panel(len(panels) + 1, title, unit, queries, place))
    run = {
        "name": "run", "type": "query", "datasource": {"type": "prometheus", "uid": "${datasource}"}, "multi": True,
        "includeAll": True, "current": {"text": "All", "value": "$__all"}, "refresh": 2,
        "query": {"query": "label_values(megajukebox_step, run)", "refId": "run"},
    }  # fmt: skip
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    return {
        "title": "megajukebox", "uid": "megajukebox", "schemaVersion": 38, "version": 1, "refresh": "30s",
        "time": {"from": "now-24h", "to": "now"}, "timezone": "browser", "tags": ["megajukebox"],
        "templating": {"list": [source, run]}, "annotations": {"list": [alerts()]}, "panels": panels,
    }  # fmt: skip


def panel(
    number: int, title: str, unit: str, queries: dict[str, str], place: dict[str, int]
) -> dict:
    source = {"type": "prometheus", "uid": "${datasource}"}
    targets = [
        {"refId": chr(65 + n), "datasource": source, "expr": query, "legendFormat": legend}
        for n, (legend, query) in enumerate(queries.items())
    ]
    return {
        "type": "timeseries", "id": number, "title": title, "gridPos": place, "datasource": source, "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, "custom": {"lineWidth": 1}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }  # fmt: skip


def alerts() -> dict:
    """Marks on the time line where an alert fired."""
    query = 'ALERTS{alertstate="firing", alertname=~"Jukebox.+", alertname!="JukeboxWatchdog"}'
    return {
        "name": "alerts", "enable": True, "datasource": {"type": "prometheus", "uid": "${datasource}"}, "expr": query,
        "titleFormat": "{{alertname}}", "textFormat": "{{run}}", "iconColor": "red", "step": "60s",
    }  # fmt: skip


if __name__ == "__main__":
    path = Path(__file__).parent / "dashboard.json"
    path.write_text(json.dumps(dashboard(), indent=1) + "\n")
    print(path)
