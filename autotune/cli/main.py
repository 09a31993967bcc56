"""The command line: one file a subcommand, every error caught here, once."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from autotune import __version__
from autotune.cli import compare, explain, export, models, plan, probe, profile, run, scale, tune, validate, verify
from autotune.cli.output import speaks
from autotune.errors import AutotuneError, MachineError
from autotune.ranks import interrupt
from autotune.ranks.launch import allow_restart

CLOSED_PIPE = 141
"""128 + SIGPIPE, as other programs end when their reader has gone."""


class _Commands(TyperGroup):
    """Turns what a command raises into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with interrupt.raising():
                result = super().invoke(ctx)
                sys.stdout.flush()
        except AutotuneError as error:
            _line(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as error:
            if speaks():
                _line(interrupted(ctx.invoked_subcommand, error))
            raise typer.Exit(interrupt.exit_code(error)) from None
        except BrokenPipeError:
            _leave_pipe()
        except OSError as error:
            _line(f"error: the system refused: {error}; free what it names, or choose another place")
            _drop_output()
            raise typer.Exit(MachineError.exit_code) from None
        return result


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (probe, models, run, profile, tune, explain, plan, scale, verify, validate, compare, export):
    app.command(module.__name__.rpartition(".")[2])(module.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"autotune {__version__}")
        raise typer.Exit


@app.callback()
def _autotune(
    _version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Run, measure, explain and tune the optimized DLRM on CPUs.

    Example: autotune tune small --sockets 1 --budget 120s
    """


def interrupted(command: str | None, error: KeyboardInterrupt) -> str:
    """What is said after Ctrl-C or SIGTERM."""
    goes_on = "; the same command goes on from its journal" if command == "tune" else ""
    return f"{'terminated' if isinstance(error, interrupt.Terminated) else 'interrupted'}; state kept{goes_on}"


def _line(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _drop_output() -> None:
    """What is still buffered for standard output must not fail once more at exit, where Python would print it and end with 120."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave_pipe() -> NoReturn:
    """The reader of standard output has gone."""
    _drop_output()
    raise typer.Exit(CLOSED_PIPE)


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
    app(prog_name="autotune")
