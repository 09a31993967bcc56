"""`autotune verify`."""

from __future__ import annotations

from autotune.cli.options import BudgetOption, ConfigArgument, ForceOption, JsonOption, OutputOption, RanksOption, inputs_of
from autotune.cli.output import check_outputs, show, speaks
from autotune.cli.progress import reporting
from autotune.errors import VerificationError
from autotune.units import parse_duration


def command(
    config: ConfigArgument,
    sockets: RanksOption = None,
    budget: BudgetOption = "30s",
    force: ForceOption = False,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Measure the default against a tuned config again, side by side. Exit code 1 when the gain is gone.

    Example: autotune verify small.tuned.yaml --budget 60s
    """
    from autotune import api
    from autotune.config.files import load_tuned, record_path
    from autotune.report import text

    check_outputs(output, inputs=[config, record_path(config), *inputs_of(load_tuned(config).model)])
    with reporting() as progress:
        result = api.verify(config, sockets=sockets, budget_s=parse_duration(budget), force=force, progress=progress)
    show(result, text.verification, as_json, output)
    if not result.holds and speaks():
        raise VerificationError(f"{result.reason} ({config})")
