from __future__ import annotations

import pytest
from rich.console import RenderableType

from autotune.config.knobs import RunConfig
from autotune.config.profile import Profile
from autotune.config.tuned import Interval, MeasuredPass, TunedConfig
from autotune.perf.table import OperatorTable
from autotune.report import text
from autotune.report.layout import to_text
from autotune.report.record import RunResult
from autotune.tuning.verify import Verification


def around(median: float) -> Interval:
    return Interval(median=median, low=median * 0.98, high=median * 1.02, samples=30)


ROWS = (
    MeasuredPass(
        operator="bottom_mlp.10.backward_weights",
        time_s=around(0.01234),
        share=0.617,
        flops=4_000_000_000,
        bytes=30_000_000,
        fractions={"memory": 0.08, "compute": 0.93},
        binder="compute",
        detail="",
    ),
    MeasuredPass(
        operator="other",
        time_s=around(0.0004),
        share=0.004,
        flops=0,
        bytes=0,
        fractions={},
        binder="none",
        detail="",
    ),
)
TABLE = OperatorTable(
    model="small[max_rows=10]",
    data="uniform indices",
    minibatch=2048,
    threads=2,
    iteration_s=around(0.02),
    rows=ROWS,
    notes=("3 disturbed rounds were repeated",),
)
RUN = RunResult(
    model="small",
    data="uniform indices",
    minibatch=2048,
    config=RunConfig(threads=2),
    steps=3,
    iteration_s=around(0.038),
    samples_per_s=53894.7,
    losses=(0.7, 0.69, 0.68),
    auc=0.75,
    notes=("a note",),
)


def shown(renderable: RenderableType, width: int = 80) -> str:
    out = to_text(renderable, width)
    assert max(map(len, out.splitlines())) <= width
    return out


def holds(out: str, *pieces: str) -> None:
    for piece in pieces:
        assert piece in out


def test_a_table_of_80_columns_holds_what_a_reader_needs() -> None:
    out = shown(text.operator_table(TABLE, 80))
    holds(out, "small[max_rows=10]", "20.0 ms", "bottom_mlp.10.bwd_weights", "12.3", "62%", "324", "2.43", "compute 93%", "other", "0.4%")
    assert "note: 3 disturbed rounds were repeated" in out


def test_a_wide_table_spells_everything_out() -> None:
    out = shown(text.operator_table(TABLE, 160), 160)
    holds(out, "bottom_mlp.10.backward_weights", "% memory", "% compute", "8.0%", "133", "12.1-12.6")


def test_a_narrow_table_keeps_operator_time_and_binder() -> None:
    out = shown(text.operator_table(TABLE, 50), 50)
    holds(out, "bottom_mlp.10.bwd_weights", "12.3", "compute 93%")


def test_a_run_tells_speed_loss_and_what_was_used() -> None:
    out = shown(text.run_result(RUN))
    holds(
        out,
        "3 steps of 2048",
        "38.0 ms (37.2 ms .. 38.8 ms, 30 samples)",
        "53,895",
        "0.700000",
        "0.680000",
        "0.7500",
        "2 threads",
        "note: a note",
    )


def test_a_run_without_real_labels_has_no_auc() -> None:
    assert "AUC" not in shown(text.run_result(RunResult(**{**vars(RUN), "auc": None})))


def test_a_profile_shows_machine_and_ceilings(hardware_profile: Profile) -> None:
    out = shown(text.profile(hardware_profile))
    holds(out, "Some CPU", "limit 24.0 GiB", "FMA", "200 GF/s", "40.0 GB/s", "256 B rows of 256 MiB", "1.00 us", "note: disturbed once")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_tuned_config_shows_operators_choices_and_the_whole(tuned_config: TunedConfig, width: int) -> None:
    out = shown(text.tuned_config(tuned_config, width, "small.tuned.yaml"), width)
    holds(out, "memory 90%", "1.25x", "1.15x", "significant", "7 trials", "small.tuned.yaml", "note: 2 disturbed")


def test_a_verification_says_whether_it_holds() -> None:
    good = Verification(around(0.09), around(0.08), around(1.12), True, "the tuned config holds", ())
    assert "\nverdict  the tuned config holds" in shown(text.verification(good))
    assert shown(text.verification(Verification(**{**vars(good), "holds": False}))).startswith("does not hold")
