from __future__ import annotations

import pytest
from configs import recorded_with

from autotune.config.tuned import Interval, TunedConfig
from autotune.explaining.diagnosis import Finding, explain


def found(config: TunedConfig, operator: str, kind: str) -> Finding:
    matching = [finding for finding in explain(config).findings if (finding.operator, finding.kind) == (operator, kind)]
    assert len(matching) == 1
    return matching[0]


def test_what_is_left_is_the_time_above_the_nearest_ceiling(tuned_config: TunedConfig) -> None:
    left = {row.operator: row.above_ceiling_s for row in explain(tuned_config).remaining}
    assert left["embedding_bag.forward"] == pytest.approx(0.016 * 0.1)
    assert left["top_mlp.0.backward_weights"] == pytest.approx(0.05 * 0.3)
    assert left["interaction.forward"] == pytest.approx(0.01 * 0.7)
    assert list(left) == ["top_mlp.0.backward_weights", "interaction.forward", "embedding_bag.forward"]


def test_choices_are_kept_tied_or_untested(tuned_config: TunedConfig) -> None:
    choices = {choice.operator: choice for choice in explain(tuned_config).choices}
    kept, tied, untested = choices["embedding_bag.forward"], choices["embedding_bag.update"], choices["interaction.forward"]
    assert kept.chosen.startswith("prefetch_distance 8 -> 16")
    assert kept.saved_s == pytest.approx(0.004)
    assert kept.speedup is not None
    assert (tied.chosen, tied.tried, tied.saved_s) == ("", "strategy bucketed -> race_free_range", 0.0)
    assert not untested.raced
    assert "loss" not in choices


@pytest.mark.parametrize(
    ("operator", "kind", "evidence", "remedy"),
    [
        ("embedding_bag.forward", "memory_bound", "gather", "row bytes"),
        ("top_mlp.0.backward_weights", "compute_bound", "2048x1024x1024", "raced"),
        ("interaction.forward", "below_every_ceiling", "30% of the memory ceiling", "raced"),
        ("interaction.forward", "wide_interval", "7.00 ms to 13.0 ms from 30 samples", "budget"),
        ("other", "outside_operators", "2.00 ms of 78.0 ms", "minibatch"),
    ],
)
def test_findings_carry_evidence_and_a_remedy(tuned_config: TunedConfig, operator: str, kind: str, evidence: str, remedy: str) -> None:
    finding = found(tuned_config, operator, kind)
    assert evidence in finding.evidence
    assert remedy in finding.remedy.text


def test_what_was_raced_already_needs_another_remedy(tuned_config: TunedConfig) -> None:
    raced = tuned_config.gains[0].model_copy(update={"operator": "top_mlp.0.backward_weights", "candidates": 28})
    finding = found(recorded_with(tuned_config, gains=(raced,)), "top_mlp.0.backward_weights", "compute_bound")
    assert "28 candidates raced" in finding.evidence
    assert "fewer operations" in finding.remedy.text


def test_findings_are_ranked_by_what_they_would_save(tuned_config: TunedConfig) -> None:
    savings = [finding.saving_s for finding in explain(tuned_config).findings]
    assert savings == sorted(savings, reverse=True)
    assert explain(tuned_config).findings[0].operator == "top_mlp.0.backward_weights"


def test_no_gain_is_said(tuned_config: TunedConfig) -> None:
    speedup = Interval(median=1.0, low=0.98, high=1.02, samples=30)
    config = tuned_config.model_copy(update={"significant": False, "speedup": speedup})
    assert "0.980 to 1.020" in found(config, "iteration", "no_gain").evidence


def test_a_kernel_without_huge_pages_is_named(tuned_config: TunedConfig) -> None:
    topology = tuned_config.fingerprint.topology.model_copy(update={"huge_pages": "never"})
    config = tuned_config.model_copy(update={"fingerprint": tuned_config.fingerprint.model_copy(update={"topology": topology})})
    assert "transparent_hugepage" in found(config, "embedding_bag", "small_pages").remedy.text


def test_a_ceiling_that_was_passed_leaves_nothing(tuned_config: TunedConfig) -> None:
    verdict = tuned_config.verdicts[0].model_copy(update={"fractions": {"memory": 1.2}})
    row = explain(recorded_with(tuned_config, verdicts=(verdict,))).remaining[0]
    assert row.above_ceiling_s == 0.0


def test_a_pass_lost_in_the_noise_is_not_diagnosed(tuned_config: TunedConfig) -> None:
    tiny = Interval(median=1e-5, low=1e-5, high=1e-5, samples=30)
    verdicts = (*tuned_config.verdicts, tuned_config.verdicts[0].model_copy(update={"operator": "loss", "time_s": tiny}))
    assert all(finding.operator != "loss" for finding in explain(recorded_with(tuned_config, verdicts=verdicts)).findings)


def test_remarks_of_the_tuning_run_are_notes_and_no_findings(tuned_config: TunedConfig) -> None:
    remarks = ("2 disturbed rounds were repeated", "the budget ended before all were raced", "4 models were kept in memory")
    provenance = tuned_config.provenance.model_copy(update={"notes": remarks})
    account = explain(tuned_config.model_copy(update={"provenance": provenance}))
    assert not any(remark in finding.evidence for finding in account.findings for remark in remarks)
    assert tuple(note.text for note in account.notes) == remarks
    quiet, budget, nothing = (note.remedy for note in account.notes)
    assert quiet is not None
    assert "quiet" in quiet.text
    assert budget is not None
    assert budget.command == ("autotune", "tune", "small", "--sockets", "1", "--budget", "240s")
    assert nothing is None


def test_the_paragraph_holds_the_whole_evidence_of_the_first_finding(tuned_config: TunedConfig) -> None:
    account = explain(tuned_config)
    assert account.findings[0].evidence in account.sentences[2]
