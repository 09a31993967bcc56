"""Commands in the tests' own process, and what a refusal looks like."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from autotune.cli.main import command_line


def invoke(*arguments: str | Path) -> Result:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(command_line(words), words, prog_name="autotune")


def refused(result: Result, code: int, *pieces: str) -> None:
    """One clear error on standard error, nothing on standard output, no traceback."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("progress: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for piece in pieces:
        assert piece in result.stderr
