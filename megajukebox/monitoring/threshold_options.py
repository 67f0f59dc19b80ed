"""The thresholds of alerts as options, which `watch` and `exporter` share; AlertThresholds takes them by these names.

stall: threshold_options.Stall = 120
"""

from typing import Annotated

from typer import Option

Stall = Annotated[
    float, Option(min=1, help="Seconds without a step that count as stalled, at least.")
]
Silent = Annotated[float, Option(min=1, help="Seconds after which a heartbeat is missed.")]
Checkpoint = Annotated[float, Option(min=1, help="Age of a stale checkpoint in seconds, at least.")]
Down = Annotated[float, Option(min=1, help="Seconds without a process that count as down.")]
