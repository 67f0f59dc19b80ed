"""Evaluation along training: the loss on held-out clips, what the task evaluates besides, and reconstructions."""

import numpy as np

from megajukebox.training.engines import collectives
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.reconstruction_samples import write_reconstructions
from megajukebox.training.run_context import RunContext
from megajukebox.training.tasks import Task

NORMAL_95 = 1.96  # standard errors that half of a 95 % interval is wide


def evaluate(run: RunContext, task: Task, engine: ZeroEngine, step: int) -> dict[str, float]:
    """Average the metrics over the held-out batches, log and return them."""
    with run.watchdog.phase("eval"):
        batches = [engine.evaluate(batch) for batch in task.held_out()]
        own = evaluate_task(task, engine)
        write_reconstructions(run, task, engine, step)
    names = batches[0] if batches else ()
    averages: dict[str, float] = {}
    for name in names:
        averages[name] = sum(metrics[name] for metrics in batches) / len(batches)
    averages |= own
    if averages:
        run.log.metrics(step, "held_out", averages)
    return averages


def evaluate_task(task: Task, engine: ZeroEngine) -> dict[str, float]:
    """What the task's own evaluator finds on the windows of all ranks: means, and half their 95 % intervals (`_ci`)."""
    if task.evaluator is None:
        return {}
    with engine.whole() as model:
        own = {name: values.tolist() for name, values in task.evaluator(model).items()}
    metrics: dict[str, float] = {}
    for name in own:
        values = np.concatenate(collectives.all_gather(own[name]))
        if len(values) > 1:
            standard_error = values.std(ddof=1) / len(values) ** 0.5
            metrics[name] = float(values.mean())
            metrics[f"{name}_ci"] = float(NORMAL_95 * standard_error)
    return metrics
