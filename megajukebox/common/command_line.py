"""What all entries share: logging options, a user's mistake as one line, renamed options, help with brackets.

An entry is a plain function with Typer annotations. Its module ends with

    if __name__ == "__main__":
        run_command(main, "train")

and `megajukebox train` (cli.py) runs the same function in the same way. Raise `UserError` for what the user can mend;
everything else keeps its traceback. Exit codes: 0 OK; checks: 1 warning, 2 critical; runs: 75 retry, 85 preempted,
93 fatal, which a `UserError` is in every entry; 2 is also a wrong option.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from megajukebox.common.build_folders import use_private_build_folders
from megajukebox.common.errors import EXIT_FATAL, UserError
from megajukebox.common.logging import LogLevel, rank_prefix, setup_logging
from megajukebox.common.plain_text import without_controls
from megajukebox.common.redaction import redact

F = TypeVar("F", bound=Callable[..., None])

LOGGING_PANEL = "Logging"
LogLevelOption = Annotated[
    LogLevel | None,
    typer.Option(
        "--log-level",
        rich_help_panel=LOGGING_PANEL,
        help="Log messages from this level on (default: info, or $MEGAJUKEBOX_LOG_LEVEL).",
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        rich_help_panel=LOGGING_PANEL,
        help="Log warnings and errors alone, show no progress.",
    ),
]
RENAMED_OPTIONS = "megajukebox_renamed_options"  # the attribute of an entry that holds them


def renamed_options(old_to_new: dict[str, str]) -> Callable[[F], F]:
    """Accept options under their old names, hidden from --help, with a line on stderr that names the new one.

        @renamed_options({"--most-songs": "--max-songs", "--stop-when-lost": "--on-lost-shard=stop"})
        def main(max_songs: ..., on_lost_shard: ...) -> None:

    A flag of before may become an option with its value (`=stop`). Old names go with the next version; each has a test.
    It holds on the command line alone: callers in Python use the new parameters.
    """

    def mark(function: F) -> F:
        setattr(function, RENAMED_OPTIONS, old_to_new)
        return function

    return mark


class EntryCommand(TyperCommand):
    """A command that knows its options' old names, and shows `[` in help texts instead of reading it as markup."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        old_to_new = getattr(self.callback, RENAMED_OPTIONS, {})
        new_args: list[str] = []
        for index, arg in enumerate(args):
            if arg == "--":
                new_args += args[index:]
                break
            name, equals, value = arg.partition("=")
            if name in old_to_new:
                new = old_to_new[name]
                log_renamed(f"option {name}", new.replace("=", " "))
                arg = new + equals + value
            new_args.append(arg)
        return super().parse_args(ctx, new_args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.markup import escape

        self.help = escape(self.help or "")
        for parameter in self.get_params(ctx):
            text = getattr(parameter, "help", None)
            if text:
                parameter.help = escape(text)  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def log_renamed(old: str, new: str) -> None:
    """Tell the user of an old name that it goes. To stderr directly: the command's logging is not set up yet."""
    print(
        f"megajukebox: {old} is now {new}; the old name goes with the next version", file=sys.stderr
    )


def entry_function(function: Callable[..., None], verb: str) -> Callable[..., None]:
    """`function` with --log-level and --quiet, whose UserErrors end as one line and EXIT_FATAL."""
    signature = inspect.signature(function)
    options = {"log_level": (LogLevelOption, None), "quiet": (QuietOption, False)}
    parameters = list(signature.parameters.values())
    for name, (annotation, default) in options.items():
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))

    @functools.wraps(function)
    def command(*, log_level: LogLevel | None, quiet: bool, **arguments: Any) -> None:
        setup_logging(verb, chosen_level(log_level, quiet))
        try:
            use_private_build_folders()
            function(**arguments)
        except UserError as error:  # other errors keep their traceback
            message = redact(f"{rank_prefix()}{verb}: {error}")
            print(without_controls(message), file=sys.stderr)
            raise SystemExit(EXIT_FATAL) from None

    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    annotations = {name: annotation for name, (annotation, _) in options.items()}
    command.__annotations__ = {**function.__annotations__, **annotations}
    return command


def chosen_level(log_level: LogLevel | None, quiet: bool) -> LogLevel | None:
    """The level that the two options ask for together; None where neither is given."""
    if log_level is None and quiet:
        return LogLevel.warning
    return log_level


def command_app(function: Callable[..., None], verb: str) -> typer.Typer:
    """A Typer app of the one command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name=verb, cls=EntryCommand)(entry_function(function, verb))
    return app


def group_app(subverbs: typer.Typer, verb: str, help: str) -> typer.Typer:
    """A Typer app of the commands of `subverbs`, each below `verb`, with what all entries share."""
    app = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=help
    )
    for info in subverbs.registered_commands:
        assert info.callback
        name = info.name or info.callback.__name__.replace("_", "-")
        function = entry_function(info.callback, f"{verb} {name}")
        app.command(name=name, hidden=info.hidden, cls=EntryCommand)(function)
    return app


def run_command(function: Callable[..., None], verb: str) -> None:
    """Run an entry with the arguments of this process: what `deepspeed megajukebox/train.py ...` starts."""
    command_app(function, verb)()
