"""What `explain` prints: one screen, and names that stay apart however narrow it is."""

import pytest

from autotune.config.tuned import TunedConfig
from autotune.explaining.diagnosis import explain
from autotune.report.explanation import explanation
from autotune.report.layout import operator_names, to_text

OF_LAYERS = ("forward", "backward_data", "backward_weights")
PASSES = [
    *(f"{side}_mlp.{i}.{which}" for side in ("bottom", "top") for i in range(16) for which in OF_LAYERS),
    "embedding_bag.forward", "embedding_bag.update", "embedding_bag.select", "interaction.forward", "interaction.backward",
    "loss", "optimizer", "all_to_all.forward", "all_to_all.backward", "all_reduce", "other",
]  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("name", ["tuned_config", "full_config", "four_sockets"])
def test_every_line_fits(name: str, width: int, request: pytest.FixtureRequest) -> None:
    out = to_text(explanation(explain(request.getfixturevalue(name)), width), width)
    assert max(map(len, out.splitlines())) <= width
    assert "..." not in out
    assert "\u2026" not in out


def test_a_screen_of_80_columns_holds_all(four_sockets: TunedConfig) -> None:
    out = to_text(explanation(explain(four_sockets), 80), 80)
    assert len(out.splitlines()) <= 48
    for piece in ("4 sockets", "prefetch_distance 8->16", "1.25x", "top_mlp.0.bwd_weights", "(at most", "more findings"):
        assert piece in out
    assert "the default stands in" in out


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_names_of_passes_stay_apart_at_any_width(width: int) -> None:
    names = operator_names(PASSES, width)
    assert len(set(names)) == len(PASSES)
    if width <= 40:
        assert max(map(len, names)) <= 12
