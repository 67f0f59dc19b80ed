"""The orders that a student is trained for, when one is good enough, and the table of them all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megajukebox.common.files import write_atomic
from megajukebox.common.levels import STUDENT_TABLE
from megajukebox.models.grid_order import GridOrder
from megajukebox.models.student import StudentConfig
from megajukebox.records.jsonl_tail import read_lines

LOGGED_METRICS = ("kl_", "bits_per_code", "teacher_bits")  # prefixes of what the table has of a row


class Gate(NamedTuple):
    """The divergences that a student must not exceed, in bits per code."""

    kl_forward: float  # on the teacher's windows
    kl_reverse: float  # on its own


GATES = {  # docs/distillation.md
    "top": Gate(0.02, 0.03),
    "middle": Gate(0.05, 0.08),
    "bottom": Gate(0.05, 0.08),
}


def curriculum(level: str, length: int, blocks: int) -> list[GridOrder]:
    """Orders of fewer and fewer steps, each one usable: shorter and shorter lines, all of them emitted at once.

    The top starts with half a window in each line and ends where one block in each line would take no fewer
    steps; there each line follows the one before by one position: what column by column would emit at once
    is too near to each other. An upsampler has the codes above, so its lines need not be long; it ends with
    whole columns.
    """
    longest = blocks // 2 if level == "top" else blocks // 8
    down = 1 if level == "top" else 0
    orders: list[GridOrder] = []
    fold = max(longest, 1)
    while fold:
        if blocks % fold == 0:
            order = GridOrder(down, 1, fold)
            if not orders or order.steps(length, blocks) < orders[-1].steps(length, blocks):
                orders.append(order)
        fold //= 2
    return orders


def order_folder(out: Path, order: GridOrder) -> Path:
    return out / f"order-{str(order).replace(',', '-')}"


def passes_gate(metrics: Mapping[str, float], gate: Gate) -> bool:
    """Whether both divergences are within the gate, as measured (their intervals are logged beside them)."""
    return metrics["kl_forward"] <= gate.kl_forward and metrics["kl_reverse"] <= gate.kl_reverse


def table_row(folder: Path, config: StudentConfig, gate: Gate) -> dict[str, Any]:
    """The table's row of a finished order, from the last evaluation that its run logged."""
    logged = read_lines(folder / "metrics.jsonl")
    metrics = [line for line in logged if line["split"] == "held_out"][-1]
    row: dict[str, Any] = {
        "order": str(config.order),
        "folder": folder.name,
        "steps_per_window": config.steps,
        "passed": passes_gate(metrics, gate),
    }
    for name, value in metrics.items():
        if name.startswith(LOGGED_METRICS):
            row[name] = value
    return row


def describe_row(row: Mapping[str, Any]) -> str:
    """A row of the table in one line."""
    forward = f"{row['kl_forward']:.4f} +- {row['kl_forward_ci']:.4f}"
    reverse = f"{row['kl_reverse']:.4f} +- {row['kl_reverse_ci']:.4f}"
    result = "passes" if row["passed"] else "does not pass"
    return (
        f"order {row['order']}: {row['steps_per_window']} steps per window, KL forward {forward},"
        f" reverse {reverse} bits per code; {result} the gate"
    )


def write_table(out: Path, rows: list[dict[str, Any]], gate: Gate) -> None:
    """Write every order's row; `use` is the one of fewest steps that passed, else of most steps."""
    by_steps = sorted(rows, key=lambda row: row["steps_per_window"])
    passed = [row for row in by_steps if row["passed"]]
    used = passed[0] if passed else by_steps[-1]
    table = {"use": used["folder"], "gate": gate._asdict(), "orders": rows}
    write_atomic(out / STUDENT_TABLE, (json.dumps(table, indent=1) + "\n").encode())
