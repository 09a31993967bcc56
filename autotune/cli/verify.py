"""`autotune verify`."""

from __future__ import annotations

from autotune.cli.options import BudgetOption, ConfigArgument, ForceOption, JsonOption, OutputOption
from autotune.cli.output import check_outputs, say, show
from autotune.cli.progress import reporting
from autotune.cli.session import check_tuned, describe, select_model, start_default
from autotune.config.files import load_tuned
from autotune.errors import VerificationError
from autotune.probe.topology import detect
from autotune.report import text
from autotune.units import parse_duration


def command(
    config: ConfigArgument,
    budget: BudgetOption = "30s",
    force: ForceOption = False,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Measure the default against a tuned config again, side by side. Exit code 1 when the gain is gone.

    Example: autotune verify small.tuned.yaml --budget 60s
    """
    check_outputs(output)
    budget_s = parse_duration(budget)
    tuned = load_tuned(config)
    model = select_model(tuned.model)
    topology = detect()
    check_tuned(tuned, model, topology, force)
    # The default may want more threads than the config: the process is started for both.
    launch = start_default(topology)
    say(f"using {config}: {describe(tuned.config, launch)}")
    from autotune.tune.verify import verify

    with reporting() as progress:
        result = verify(tuned, model, budget_s=budget_s, progress=progress, force=force)
    show(result, text.verification, as_json, output)
    if not result.holds:
        raise VerificationError(f"{result.reason} ({config})")
