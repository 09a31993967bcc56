"""`autotune verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autotune.cli.options import BudgetOption, ConfigArgument, ForceOption, JsonOption, OutputOption, RanksOption
from autotune.cli.output import check_outputs, say, show
from autotune.cli.progress import reporting
from autotune.cli.ranks import open_rank, start_ranks, wanted_ranks
from autotune.cli.session import check_tuned, describe, select_model, start_default
from autotune.config.files import load_tuned
from autotune.config.partition import CommunicationKnobs
from autotune.config.tuned import TunedConfig
from autotune.errors import VerificationError
from autotune.probe.topology import detect
from autotune.report import text
from autotune.tune.budget import Deadline
from autotune.units import parse_duration

if TYPE_CHECKING:
    from autotune.tune.verify import Verification


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
    check_outputs(output)
    budget_s = parse_duration(budget)
    tuned = load_tuned(config)
    model = select_model(tuned.model)
    count = wanted_ranks(sockets, config)
    if count > 1:
        start_ranks(count)
        _verify_rank(config, tuned, budget_s, force, as_json, output)
        return
    topology = detect()
    check_tuned(tuned, model, topology, force)
    # The default may want more threads than the config: the process is started for both.
    launch = start_default(topology)
    say(f"using {config}: {describe(tuned.config, launch)}")
    from autotune.tune.verify import verify

    with reporting() as progress:
        result = verify(tuned, model, budget_s=budget_s, progress=progress, force=force)
    _tell(result, config, as_json, output)


def _verify_rank(file: Path, tuned: TunedConfig, budget_s: float, force: bool, as_json: bool, output: Path | None) -> None:
    """The same on one of several ranks; rank 0 compares, and tells."""
    deadline = Deadline(budget_s)
    session = open_rank(tuned.model, config_file=file, force=force)
    from autotune.bench.noise import NoiseMonitor
    from autotune.cli.lockstep import in_lockstep
    from autotune.tune.ranks import default_for_ranks, models_in_memory
    from autotune.tune.verify import verify_on

    with reporting(show=session.first) as progress, session.joined() as network:
        default = default_for_ranks(session.model, session.plan(), session.topology, CommunicationKnobs())
        keep = models_in_memory(session.model, session.ranks.world, session.ranks.local_world, session.whole)
        progress.phase("building the model", None)
        with in_lockstep(session, default, network, keep_models=keep) as lockstep:
            if lockstep is not None:
                left_s = max(deadline.left_s, 0.1 * budget_s)
                monitor = NoiseMonitor(session.topology.allowed_cpus)
                result = verify_on(
                    tuned, lockstep, lockstep, default, budget_s=left_s, progress=progress, monitor=monitor, notes=session.notes
                )
    if session.first:
        _tell(result, file, as_json, output)


def _tell(result: Verification, file: Path, as_json: bool, output: Path | None) -> None:
    show(result, text.verification, as_json, output)
    if not result.holds:
        raise VerificationError(f"{result.reason} ({file})")
