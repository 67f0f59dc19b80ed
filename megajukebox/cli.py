"""One command for everything; a verb's module is imported only when that verb is used.

    megajukebox --help                              # all verbs
    megajukebox help VERB                           # the same as: megajukebox VERB --help
    megajukebox --log-level debug VERB ...          # or --quiet: warnings and errors alone
    megajukebox --install-completion                # TAB completes verbs and options

The group is lazy in the way that Click documents: `VERBS` says where each verb lies and what it is for. A new verb takes
a line here and a module in commands/ that opens with commands to paste and defines `main`, or, where there are verbs
below it (`explore build`, `explore serve`), a Typer `app` of functions that are those verbs.
"""

from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from megajukebox import __version__
from megajukebox.common.command_line import (
    LogLevelOption,
    QuietOption,
    chosen_level,
    command_app,
    group_app,
    log_renamed,
)
from megajukebox.common.logging import setup_logging


class Verb(NamedTuple):
    name: str
    module: str  # within megajukebox
    help: str
    function: str = "main"


PANELS = {
    "Data": (
        Verb("prepare", "commands.prepare", "Turn songs and lyrics into song shards."),
        Verb(
            "prepare-notes",
            "commands.prepare_notes",
            "Turn MIDI, MusicXML, ABC and kern files into note shards.",
        ),
        Verb(
            "convert-notes",
            "commands.convert_notes",
            "Convert a file of notes to MIDI, MusicXML, ABC, or a sound.",
        ),
        Verb("shards", "commands.shards", "Check a shard set, or print what is in it."),
        Verb(
            "sections",
            "commands.sections",
            "Find what sounds again in songs whose sections nobody wrote down.",
        ),
        Verb("encode", "encode", "Encode song shards into code shards with a VQ-VAE."),
    ),
    "Train": (
        Verb("plan", "commands.plan", "Predict memory, days, disk and failures of a training run."),
        Verb(
            "train", "train", "Train a stage: vqvae, top_prior, middle_upsampler, bottom_upsampler."
        ),
        Verb(
            "supervise",
            "commands.supervise",
            "Restart a training command after faults until it is done.",
        ),
        Verb("adapt", "commands.adapt", "Train an adapter on your songs beside frozen priors."),
        Verb("merge", "commands.merge", "Fold adapters into runs for good."),
        Verb("save", "commands.control", "Ask a run for a checkpoint now.", "save"),
        Verb(
            "stop", "commands.control", "Ask a run to save and stop after its current step.", "stop"
        ),
        Verb("distill", "distill", "Distill a prior into its parallel student."),
        Verb(
            "extend-vocabulary",
            "commands.extend_vocabulary",
            "Add artists, genres and other names to trained runs.",
        ),
    ),
    "Sample": (
        Verb("sample", "sample", "Generate songs from requests."),
        Verb("compose", "commands.compose", "Compose pieces of written music."),
        Verb(
            "reconstruct", "commands.reconstruct", "Encode and decode real songs, level by level."
        ),
        Verb("preview", "commands.preview", "Generate a few seconds from a run that trains."),
        Verb(
            "align",
            "commands.align",
            "Find the head of the top prior that shows when words are sung.",
        ),
        Verb(
            "import",
            "commands.import_weights",
            "Import OpenAI's or Hugging Face's Jukebox weights as runs.",
        ),
        Verb(
            "export",
            "commands.export_weights",
            "Export the weights of runs, plain or in OpenAI's layout.",
        ),
        Verb("demo", "commands.demo", "Run the whole pipeline on generated songs, or on yours."),
    ),
    "Evaluate": (
        Verb(
            "evaluate", "commands.evaluate", "Score a run or samples, and compare with a reference."
        ),
        Verb(
            "explore", "commands.explore", "Build pages to look at and listen to samples and runs."
        ),
    ),
    "Operate": (
        Verb("doctor", "doctor", "Check whether this machine, or all ranks, are fit for a run."),
        Verb("watch", "commands.watch", "Show the state of runs, their alerts and what to do."),
        Verb(
            "exporter",
            "commands.exporter",
            "Serve the metrics of runs to Prometheus, send alerts to webhooks.",
        ),
        Verb(
            "publish-metrics",
            "commands.publish_metrics",
            "Send the metrics of runs to TensorBoard or Weights & Biases.",
        ),
        Verb(
            "support-bundle",
            "commands.support_bundle",
            "Collect state and logs of a run into one archive, without secrets.",
        ),
    ),
}
VERBS: dict[str, Verb] = {}
PANEL_OF: dict[str, str] = {}
for _panel, _verbs in PANELS.items():
    for _verb in _verbs:
        VERBS[_verb.name] = _verb
        PANEL_OF[_verb.name] = _panel
# Verbs of version 0.1, hidden; they go with the next version.
RENAMED_VERBS = {
    "score": "evaluate",
    "listen": "preview",
    "grow": "extend-vocabulary",
    "bundle": "support-bundle",
    "board": "publish-metrics",
}


class LazyGroup(TyperGroup):
    """Lists verbs from the table, and imports the module of the one that is run."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """What help and completion show of a verb, without its module."""
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        return TyperCommand(verb.name, help=verb.help, rich_help_panel=PANEL_OF[verb.name])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The verb that `args` name, as a whole command, and its arguments."""
        if args == ["help"]:
            typer.echo(ctx.get_help())
            ctx.exit()
        if args[0] == "help":
            args = [*args[1:], "--help"]
        name = args[0]
        rest = args[1:]
        if name in RENAMED_VERBS:
            log_renamed(f"verb {name}", RENAMED_VERBS[name])
            name = RENAMED_VERBS[name]
        if name not in VERBS:
            if ctx.resilient_parsing:  # completion
                return None, None, rest
            near = get_close_matches(name, [*VERBS, *RENAMED_VERBS], n=1, cutoff=0.5)
            advice = "megajukebox --help lists them."
            if near:
                advice = f"did you mean {RENAMED_VERBS.get(near[0], near[0])!r}?"
            ctx.fail(f"There is no verb {name!r}; {advice}")
        command = load_command(VERBS[name])
        if name == "explore" and isinstance(command, TyperGroup):
            rest = new_explore_form(rest)
        return name, command, rest


def load_command(verb: Verb) -> Any:
    """Import the module of a verb, and make its command."""
    try:
        module = import_module(f"megajukebox.{verb.module}")
    except KeyboardInterrupt:  # while torch is imported, for a second or more
        raise SystemExit(f"megajukebox {verb.name}: stopped before it began") from None
    subverbs = getattr(module, "app", None)
    if isinstance(subverbs, typer.Typer):
        return typer.main.get_command(group_app(subverbs, verb.name, verb.help))
    return typer.main.get_command(command_app(getattr(module, verb.function), verb.name))


def new_explore_form(args: list[str]) -> list[str]:
    """`explore SAMPLES --out SITE` and `explore SAMPLES --serve` of version 0.1, as `explore build` and `explore serve`."""
    if not args or args[0] in ("build", "serve", "--help", "-h"):
        return args
    subverb = "serve" if "--serve" in args else "build"
    log_renamed("explore without a verb", f"explore {subverb}")
    return [subverb, *[arg for arg in args if arg != "--serve"]]


app = typer.Typer(
    cls=LazyGroup,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"megajukebox {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=print_version, help="Print the version."),
    ] = False,
    log_level: LogLevelOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train and sample Jukebox-class models that generate music as raw audio."""
    setup_logging("", chosen_level(log_level, quiet))


def main() -> None:
    app(prog_name="megajukebox")


if __name__ == "__main__":
    main()
