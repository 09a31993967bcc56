"""Every sentence is whole, and every remedy's command is one that the command line accepts."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import typer.main

from autotune.cli.main import command_line
from autotune.cli.plan import KINDS
from autotune.config.tuned import TunedConfig
from autotune.explaining import wording
from autotune.explaining.diagnosis import explain
from autotune.explaining.remedies import Remedy

EVIDENCE: dict[str, list[tuple[Any, ...]]] = {
    "ceiling_evidence": [
        ({"memory": 0.9, "compute": 0.1}, "", 12), ({}, "", 0), ({"memory": 0.9}, "a detail. And one more.", 0), ({}, "a detail.", 3),
    ],
    "outside_evidence": [(0.002, 0.078)],
    "no_gain_evidence": [(0.98, 1.02)],
    "wide_interval_evidence": [(0.007, 0.013, 30)],
    "small_pages_evidence": [("never",)],
    "slower_evidence": [(0.0193, 0.0044, 0.00542)],
    "small_minibatch_evidence": [(0.05, 3000, 2, 2048), (0.05, 3000, 1, 2048)],
    "table_evidence": [
        ("update", 19, None, 4.1e-4, 1e-4, 0, ""), ("update", 19, 2, 4.1e-4, 1e-4, 1, "38% of its look-ups hit 12 rows"),
        ("forward", 1, None, 4.1e-4, 1e-4, 3, ""),
    ],
    "skew_evidence": [(1, "38% of its look-ups hit 12 rows", "bucketed", 2, 1.9)],
    "uneven_ranks_evidence": [(2, 0.3, "embedding_bag.forward", 0.004, ""), (2, 0.3, "loss", 0.004, "with 2.00x the mean look-ups")],
    "exposed_evidence": [(0.004, 0.001, 1 << 20)],
    "waiting_evidence": [(0.004, 0.078, "loss", (0,)), (0.004, 0.078, "loss", tuple(range(12)))],
    "bandwidth_evidence": [(0.75, 0.8, 0.02)],
    "arithmetic_evidence": [(0.5, 0.02)],
    "oversubscribed_evidence": [(2, 1, 1.0, "cores"), (2, 4, 2.5, "CPUs' worth of time")],
}  # fmt: skip
SENTENCES: dict[str, list[tuple[Any, ...]]] = {
    "verdict_sentence": [
        ("small", sockets, threads, 0.078, 0.09, (1.15, 1.1, 1.2), significant)
        for sockets, threads, significant in ((1, 1, True), (4, 2, False))
    ],
    "binder_sentence": [({"memory": 0.5, "none": 0.5}, 0.01, 0.078), ({}, 0.0, 0.078)],
    "next_sentence": [
        ("top_mlp.2.backward_data", saving_s, wording.slower_evidence(0.0193, 0.0044, 0.00542), Remedy("perturb the pass"))
        for saving_s in (0.0, 0.0144)
    ],
    "nothing_sentence": [()],
    "unmeasured_sentence": [()],
}
REMEDIES: dict[str, list[tuple[Any, ...]]] = {
    "small_minibatch_remedy": [(2048, 0.05, 2), (2048, 0.05, 1)],
    "strategy_remedy": [("race_free_range", 1.9, "bucketed", 1.05)],
    "hot_table_remedy": [("atomic",), ("bucketed",)],
    "far_table_remedy": [("update", False, 8), ("update", True, 8)],
    "uneven_ranks_remedy": [(2, True), (2, False)],
    "exposed_remedy": [
        ("all_to_all.forward", False, "fp32", 1 << 22, 0), ("all_to_all.forward", True, "fp32", 1 << 22, 0),
        ("all_reduce", True, "fp32", 1 << 22, 0), ("all_reduce", True, "fp32", 1 << 19, 0), ("all_reduce", True, "fp32", 1 << 19, 1),
    ],
    "oversubscribed_remedy": [(1,)],
    "note_remedy": [("the budget ended",), ("2 disturbed rounds",)],
}  # fmt: skip
SPECIFIC = {
    "table_far_from_ceiling", "skewed_lookups", "uneven_ranks", "exposed_transfer",
    "oversubscribed_cores", "small_minibatch",
}  # fmt: skip


def functions(ending: str) -> dict[str, Callable[..., Any]]:
    return {name: function for name, function in inspect.getmembers(wording, inspect.isfunction) if name.endswith(ending)}


def whole(sentence: str) -> bool:
    return bool(re.fullmatch(r".*[^\s.;:,]\.", sentence)) and not re.search(r" [.;,]|\.[.;]|;[.;]", sentence.replace(", ...", ""))


@pytest.mark.parametrize(("ending", "cases"), [("_evidence", EVIDENCE), ("_sentence", SENTENCES)])
def test_every_evidence_and_sentence_is_whole(ending: str, cases: dict[str, list[tuple[Any, ...]]]) -> None:
    known = functions(ending)
    assert set(known) == set(cases)
    broken = [text for name, calls in cases.items() for call in calls if not whole(text := known[name](*call))]
    assert broken == []


@pytest.mark.parametrize("name", ["tuned_config", "full_config", "four_sockets"])
def test_what_is_told_of_a_config_is_whole(name: str, request: pytest.FixtureRequest) -> None:
    account = explain(request.getfixturevalue(name))
    assert [text for text in (*account.sentences, *(finding.evidence for finding in account.findings)) if not whole(text)] == []


def remedies(config: TunedConfig) -> Iterator[Remedy]:
    known = functions("_remedy")
    assert set(known) == set(REMEDIES)
    for name, calls in REMEDIES.items():
        takes_config = next(iter(inspect.signature(known[name]).parameters)) == "config"
        yield from (known[name](*((config,) if takes_config else ()), *call) for call in calls)
    for kind in set(get_args(wording.FindingKind)) - SPECIFIC:
        for operator in ("embedding_bag.forward", "loss"):
            yield from (wording.remedy(config, kind, operator, raced=raced) for raced in (True, False))
    for below in ("overhead", "imbalance", "cores", "latency"):
        yield wording.remedy(config, "below_every_ceiling", "loss", below=below)


@pytest.mark.parametrize("sockets", [1, 4])
def test_every_command_of_a_remedy_is_one_that_the_command_line_accepts(tuned_config: TunedConfig, sockets: int) -> None:
    group: Any = typer.main.get_command(command_line())
    commands = set()
    for remedy in remedies(tuned_config.model_copy(update={"sockets": sockets})):
        assert "autotune" not in remedy.text
        assert "--" not in remedy.text
        assert not remedy.text.endswith((".", ";", " "))
        if remedy.command is None:
            continue
        program, name, *arguments = remedy.command
        assert program == "autotune"
        context = group.commands[name].make_context(name, arguments)
        commands.add(name)
        kinds = context.params.get("kinds")
        assert kinds is None or set(kinds.split(",")) <= set(KINDS)
        assert "MODEL" not in remedy.command
    assert commands == {"tune", "profile", "probe", "plan"}


def test_an_option_that_does_not_exist_is_refused() -> None:
    group: Any = typer.main.get_command(command_line())
    with pytest.raises(Exception, match="No such option"):
        group.commands["plan"].make_context("plan", ["small", "--sockets", "2", "--everything"])
