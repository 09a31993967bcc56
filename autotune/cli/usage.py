"""Command lines that cannot be parsed, told in the form of all other errors: rule, value, place, next step, on one line."""

from __future__ import annotations

import re
from typing import Any

import typer

from autotune.errors import InputError

# Since 0.20 or so typer carries a click of its own.
_Refused: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def refusal(error: Exception) -> InputError | None:
    """The error for a command line that was refused; None for any other exception, and for a help text."""
    if not isinstance(error, _Refused) or type(error).__name__ == "NoArgsIsHelpError":
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "autotune"
    return InputError(f"{_rule(error)} ({command}); see {command} --help")


def _rule(error: Any) -> str:
    parameter, cause = getattr(error, "param", None), error.__cause__
    if parameter is None or not error.message:
        said: str = error.format_message().rstrip(".").replace(". Did", "; did")
        return said[:1].lower() + said[1:]
    name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.human_readable_name
    if hasattr(cause, "errors"):  # what pydantic found: it keeps the value apart
        detail = cause.errors()[0]
        rule = re.sub(r"^Input should be |, unable to parse .*", "", detail["msg"])
        return f"{name} must be {rule}, got {str(detail['input'])!r}"
    return f"{name}: {error.message.rstrip('.')}"
