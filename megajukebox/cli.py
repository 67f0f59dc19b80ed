"""`megajukebox <verb> ...` runs the entry of that name; a verb is imported only when it is used."""

import sys
from importlib import import_module

import typer

VERBS = {
    "plan": (
        "commands.plan",
        "a preset and GPUs -> memory, days, disk, failures, before anything is submitted",
    ),
    "prepare": ("commands.prepare", "songs and lyrics -> song shards"),
    "shards": ("commands.shards", "check a shard set, or say what is in it"),
    "train": ("train", "shards -> a run: vqvae, top_prior, middle_upsampler, bottom_upsampler"),
    "supervise": (
        "commands.supervise",
        "a command that trains -> started again after faults, until the run is done",
    ),
    "stop": ("commands.control", "a run -> saves and stops after its present step"),
    "save": ("commands.control", "a run -> a checkpoint now"),
    "encode": ("encode", "song shards and a VQ-VAE -> code shards"),
    "distill": ("distill", "a prior and code shards -> its parallel student"),
    "align": (
        "commands.align",
        "code shards and runs -> which head of the top prior tells when words are sung",
    ),
    "sample": ("sample", "requests and runs -> songs"),
    "evaluate": ("commands.evaluate", "a run or samples -> figures, and whether they got worse"),
    "preview": ("commands.preview", "a run that trains -> a few seconds of it"),
    "explore": ("commands.explore", "samples and runs -> pages to look at and listen to"),
    "watch": ("commands.watch", "runs -> one screen: what is wrong, and what to do"),
    "doctor": ("doctor", "is this machine, or are all ranks, fit for a run"),
    "publish-metrics": ("commands.publish_metrics", "runs -> TensorBoard, or Weights & Biases"),
    "support-bundle": (
        "commands.support_bundle",
        "a sick run -> one archive for somebody far away",
    ),
    "exporter": ("commands.exporter", "runs -> Prometheus metrics, and messages to webhooks"),
    "demo": ("commands.demo", "the whole pipeline on made-up songs, or yours"),
    "extend-vocabulary": (
        "commands.extend_vocabulary",
        "runs and new names -> runs that can be told them",
    ),
    "import": ("commands.import_weights", "OpenAI's or Hugging Face's Jukebox weights -> runs"),
    "export": ("commands.export_weights", "runs -> plain or OpenAI's weights"),
}
# Verbs of the version before; they go with the next one.
RENAMED = {
    "score": "evaluate",
    "listen": "preview",
    "grow": "extend-vocabulary",
    "bundle": "support-bundle",
    "board": "publish-metrics",
}


def main() -> None:
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help", "help"):
        print("usage: megajukebox <verb> [--help] ...\n")
        print("\n".join(f"  {name:17s} {about}" for name, (_, about) in VERBS.items()))
        return
    verb = RENAMED.get(verb, verb)
    if verb not in VERBS:
        raise SystemExit(
            f"megajukebox: there is no verb {verb!r}; choose one of {', '.join(VERBS)}"
        )
    app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
    try:
        entry = import_module(f"megajukebox.{VERBS[verb][0]}")
    except KeyboardInterrupt:  # while torch is read, for a second or more
        raise SystemExit(f"megajukebox {verb}: stopped before it began") from None
    app.command()(entry.save if verb == "save" else entry.stop if verb == "stop" else entry.main)
    app(sys.argv[2:], prog_name=f"megajukebox {verb}")


if __name__ == "__main__":
    main()
