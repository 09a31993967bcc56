"""The command line: one file a subcommand, every error caught here, once."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from autotune import __version__
from autotune.cli.output import speaks
from autotune.cli.usage import refusal
from autotune.errors import INTERRUPTED, TERMINATED, InputError
from autotune.ranks import interrupt
from autotune.ranks.failures import told
from autotune.ranks.launch import allow_restart
from autotune.ranks.variables import check_variables

CLOSED_PIPE = 141
"""128 + SIGPIPE, as other programs end when their reader has gone."""


_LONGEST = 4096
"""No path can be longer (PATH_MAX)."""


class _Commands(TyperGroup):
    """Turns what a command raises into one line and an exit code."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _told():
            for word in args[1] if len(args) > 1 else kwargs.get("args", ()):
                if len(word) > _LONGEST:
                    raise InputError(f"a word of the command line must have at most {_LONGEST} characters, got {word[:40]}...; shorten it")
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _told(ctx), interrupt.raising():
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result


class _Command(TyperCommand):
    """A subcommand, which alone heeds the environment: help is there to say what a variable may hold."""

    def invoke(self, ctx: Any) -> Any:
        gc.enable()
        check_variables()
        return super().invoke(ctx)


@contextmanager
def _told(context: Any = None) -> Iterator[None]:
    """The one place where errors are caught. `context` knows the subcommand, once it is parsed."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt as error:
        if _speaks():
            _line(interrupted(context and context.invoked_subcommand, error))
        raise typer.Exit(interrupt.exit_code(error)) from None
    except BrokenPipeError:
        _drop_output()
        raise typer.Exit(CLOSED_PIPE) from None
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        problem = refusal(error) or told(error)
        _line(f"error: {problem}")
        _drop_output()
        raise typer.Exit(problem.exit_code) from None


COMMANDS = ("probe", "models", "run", "profile", "tune", "explain", "plan", "scale", "verify", "validate", "compare", "export")
"""In the order of ``--help``; each is a module beside this one."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"autotune {__version__}")
        raise typer.Exit


def _autotune(
    _version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Run, measure, explain and tune the optimized DLRM on CPUs.

    Example: autotune tune small --sockets 1 --budget 120s
    """


def command_line(words: Sequence[str] = ()) -> typer.Typer:
    """The parser of a command line; of these words where they begin with a command, which alone is loaded then."""
    app = typer.Typer(
        cls=_Commands,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_autotune)
    for name in words[:1] if words[:1] and words[0] in COMMANDS else COMMANDS:
        app.command(name, cls=_Command)(import_module(f"autotune.cli.{name}").command)
    return app


def interrupted(command: str | None, error: KeyboardInterrupt) -> str:
    """What is said after Ctrl-C or SIGTERM: what was kept, by who stopped, else by the command."""
    kept = error.args[0] if error.args else _KEPT.get(command or "", "no file is half written")
    return f"{'terminated' if isinstance(error, interrupt.Terminated) else 'interrupted'}; {kept}"


def _speaks() -> bool:
    with suppress(InputError):  # variables of a launcher that are wrong were not what ended it
        return speaks()
    return True


_KEPT = {"tune": "state kept; the same command goes on from its journal"}


def _line(message: str) -> None:
    with suppress(OSError, ValueError):  # nobody can be told where standard error is gone
        print(message, file=sys.stderr, flush=True)


def _drop_output() -> None:
    """What is still buffered for standard output must not fail once more at exit, where Python would print it and end with 120."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed_streams() -> None:
    """A shell may start a command without them (``>&-``)."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the life of the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as above


def main() -> None:
    """Parse the command line and do what it says."""
    _open_closed_streams()
    allow_restart()
    try:
        command_line(sys.argv[1:])(prog_name="autotune")
    except SystemExit as ended:
        if ended.code in (INTERRUPTED, TERMINATED):
            # Python would end by SIGINT instead, where the exception has passed through exec() on its way here.
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(ended.code)
        raise
