"""Evaluate runs and samples: which metrics each kind of target has, and the report of them all.

To add a metric: an evaluator in evaluators/, its definition in metrics.py, one line here or in the function of
its kind of target, and a row in docs/evaluation.md.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.common.provenance import made_by
from megajukebox.evaluation.composer_metrics import composer_metrics
from megajukebox.evaluation.context import EvalContext
from megajukebox.evaluation.inputs import rate_of_samples, samples_in
from megajukebox.evaluation.metrics import MetricValue
from megajukebox.evaluation.reporting.report import build_report
from megajukebox.evaluation.run_metrics import prior_metrics, student_metrics, vqvae_metrics
from megajukebox.evaluation.sample_metrics import audio_metrics, code_metrics, paired_metrics
from megajukebox.evaluation.targets import EvalTarget

log = logging.getLogger(__name__)
Metrics = Callable[[EvalTarget, EvalContext], Iterator[MetricValue]]


@dataclass(frozen=True)
class TargetEvaluator:
    """Metrics of one kind of target, and the reference that they need, if any."""

    kind: str  # of the target
    metrics: Metrics
    reference: str | None = None  # field of References
    optional: bool = False  # skipped without the reference, rather than refused


TARGET_EVALUATORS = (
    TargetEvaluator("vqvae", vqvae_metrics, "songs"),
    TargetEvaluator("prior", prior_metrics, "codes"),
    TargetEvaluator("student", student_metrics, "codes"),
    TargetEvaluator("composer", composer_metrics, "notes"),
    TargetEvaluator("samples", paired_metrics, "samples", optional=True),
    TargetEvaluator("samples", audio_metrics),
    TargetEvaluator("samples", code_metrics, "codes", optional=True),
)
REFERENCE_WORDS = {
    "songs": "song shards",
    "codes": "code shards",
    "notes": "note shards",
    "samples": "samples",
}


def evaluate(target: EvalTarget, context: EvalContext) -> list[MetricValue]:
    """Every metric of one target that the references allow.

    Raises:
        UserError: a reference that the target's kind needs is missing, or one is on another scale.
    """
    log.info("evaluating %s", target.path)
    if target.kind == "samples":
        context.references.check_scale(samples_in(target.path))
    metrics: list[MetricValue] = []
    for evaluator in TARGET_EVALUATORS:
        if evaluator.kind != target.kind:
            continue
        name = evaluator.reference
        if name is None or getattr(context.references, name):
            metrics += evaluator.metrics(target, context)
        elif not evaluator.optional:
            raise UserError(
                f"{target.path} is evaluated against {REFERENCE_WORDS[name]};"
                f" give --reference shards/{name}"
            )
    return metrics


def report_of(
    targets: list[EvalTarget], metrics: Iterable[MetricValue], context: EvalContext
) -> dict[str, Any]:
    """The report of one target, or of the runs of a jukebox."""
    first = targets[0]
    target: dict[str, Any] = {
        "kind": first.kind,
        "level": first.level,
        "path": str(first.path),
        "step": first.step,
        "weights": first.weights,
    }
    if first.kind == "samples":
        target["sample_rate"] = rate_of_samples(samples_in(first.path))
    if len(targets) > 1:
        target = {
            "kind": "jukebox",
            "level": None,
            "path": str(first.path.parent),
            "step": None,
            "weights": [one.weights for one in targets],
        }
    facts = {
        "target": target,
        "references": context.references.describe(),
        "settings": context.settings(),
        "time": time.time(),
        "made_by": made_by(),
        "notes": context.notes,
        "refused": context.refused,
    }
    values = list(metrics)
    keys: set[str] = set()
    for value in values:
        keys |= value.items.keys()
    return build_report(values, context.labels(keys), facts)
