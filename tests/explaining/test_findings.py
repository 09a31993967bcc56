"""Findings appear where the config's data say so, name their place, and vanish where the cause is gone."""

import pytest
from configs import recorded_with

from autotune.config.measured import MachineState, TimeParts
from autotune.config.tuned import Interval, Prediction, TunedConfig
from autotune.explaining.findings import Finding, find, grouped
from autotune.explaining.remedies import Remedy
from autotune.explaining.tables import tables_in_step
from autotune.explaining.wording import FindingKind
from autotune.ops.embedding_tables import EmbeddingUpdateKnobs
from autotune.ops.layer import LayerKnobs


def of_kind(config: TunedConfig, kind: FindingKind, operator: str = "") -> list[Finding]:
    return [finding for finding in find(config) if finding.kind == kind and finding.operator.startswith(operator)]


def with_knobs(config: TunedConfig, **knobs: object) -> TunedConfig:
    operators = {**config.config.operators, **knobs}
    return config.model_copy(update={"config": config.config.model_copy(update={"operators": operators})})


def with_verdict(config: TunedConfig, operator: str, **changes: object) -> TunedConfig:
    known = {verdict.operator: verdict for verdict in config.verdicts}
    base = known.get(operator, config.verdicts[1].model_copy(update={"operator": operator}))
    known[operator] = base.model_copy(update=changes)
    return recorded_with(config, verdicts=tuple(known.values()))


UPDATE = {"time_s": Interval(median=0.008, low=0.0079, high=0.0081, samples=30), "binder": "none", "fractions": {"memory": 0.3}}


@pytest.fixture
def skewed(full_config: TunedConfig) -> TunedConfig:
    config = with_verdict(full_config, "embedding_bag.update", **UPDATE)
    return with_knobs(config, **{"embedding_bag.update": EmbeddingUpdateKnobs(strategy="race_free_range")})


def test_the_table_that_is_far_from_its_ceiling_is_named_with_a_strategy_that_parts_it(skewed: TunedConfig) -> None:
    (finding,) = of_kind(skewed, "table_far_from_ceiling", "embedding_bag.update")
    assert finding.operator == "embedding_bag.update"
    assert "table 1 takes 8.00 ms, 4.0x its ceiling of 2.00 ms" in finding.evidence
    assert "50% of its look-ups hit 16 rows" in finding.evidence
    assert "race_free_modulo" in finding.remedy.text
    assert finding.saving_s == pytest.approx(0.0056)


def test_tables_take_the_time_of_the_pass_in_proportion(skewed: TunedConfig) -> None:
    other = skewed.tables[0].model_copy(update={"table": 0, "update_s": 0.024})
    uses = tables_in_step(recorded_with(skewed, tables=(*skewed.tables, other)))
    assert [use.table for use in uses] == [0, 1]
    assert [use.update_s for use in uses] == pytest.approx([0.006, 0.002])
    unknown = tables_in_step(skewed.model_copy(update={"sockets": 2}))
    assert unknown[0].update_s == 0.008


def test_uneven_owners_are_a_finding_of_their_own_until_another_strategy_stands(skewed: TunedConfig) -> None:
    (finding,) = of_kind(skewed, "skewed_lookups")
    assert "busiest of 2 threads gets 1.90x the mean" in finding.evidence
    assert finding.saving_s == pytest.approx(0.008 * (1 - 1 / 1.9))
    even = with_knobs(skewed, **{"embedding_bag.update": EmbeddingUpdateKnobs(strategy="race_free_modulo")})
    assert of_kind(even, "skewed_lookups") == []


def test_what_names_a_cause_replaces_the_plain_verdict(skewed: TunedConfig) -> None:
    assert of_kind(skewed, "below_every_ceiling", "embedding_bag.update") == []
    assert of_kind(recorded_with(skewed, tables=()), "below_every_ceiling", "embedding_bag.update")


def test_a_layer_that_pads_is_named_with_widths_that_do_not(full_config: TunedConfig) -> None:
    # 67 inputs of the top MLP: 64 of the bottom MLP and 3 dot products; backward-weights has them as columns.
    fingerprint = full_config.fingerprint
    wide, narrow = (
        full_config.model_copy(update={"fingerprint": fingerprint.model_copy(update={"target": name})}) for name in ("avx512", "avx2")
    )
    padded = with_knobs(wide, **{"top_mlp.0.backward_weights": LayerKnobs(bn=16, bk=64)})
    (finding,) = of_kind(padded, "padded_layer")
    assert "67 output columns fill vectors of 16 up to 80: 16%" in finding.evidence
    assert "80 or 64 wide" in finding.remedy.text
    # Vectors of 8 waste less.
    assert of_kind(narrow, "padded_layer", "top_mlp.0.backward_weights") == []


def test_blocks_that_do_not_part_among_the_threads_are_named(full_config: TunedConfig) -> None:
    # 100 rows in blocks of 64 are 64 and 36; three blocks of 48 are 48 and 52, since the last one is short.
    uneven = with_knobs(full_config, **{"top_mlp.0.backward_weights": LayerKnobs(bn=64, bk=16)})
    (finding,) = of_kind(uneven, "uneven_blocks")
    assert "busiest gets 1.28x the mean" in finding.evidence
    assert of_kind(with_knobs(full_config, **{"top_mlp.0.backward_weights": LayerKnobs(bn=48, bk=16)}), "uneven_blocks") == []


def test_a_layer_with_few_flops_a_byte_is_memory_bound_by_its_shape(full_config: TunedConfig) -> None:
    first = with_verdict(full_config, "bottom_mlp.0.forward", binder="memory", fractions={"memory": 0.7, "compute": 0.2})
    (finding,) = of_kind(first, "memory_bound_layer")
    assert "13 x 64" in finding.evidence
    assert "activations" in finding.remedy.text


def test_the_slow_rank_is_named_with_its_cause(four_sockets: TunedConfig) -> None:
    (finding,) = of_kind(four_sockets, "uneven_ranks")
    assert finding.operator == "embedding_bag.forward"
    assert "rank 2 computes" in finding.evidence
    assert "2.00x the mean look-ups" in finding.evidence
    even = tuple(row.model_copy(update={"compute_s": 0.05}) for row in four_sockets.ranks)
    assert of_kind(recorded_with(four_sockets, ranks=even), "uneven_ranks") == []


def test_an_exposed_transfer_names_the_first_knob_that_is_open(four_sockets: TunedConfig) -> None:
    def remedies(**knobs: object) -> dict[str, Remedy]:
        communication = four_sockets.config.communication
        assert communication is not None
        config = four_sockets.config.model_copy(update={"communication": communication.model_copy(update=knobs)})
        found = of_kind(four_sockets.model_copy(update={"config": config}), "exposed_transfer")
        return {finding.operator: finding.remedy for finding in found}

    assert "overlap" in remedies()["all_to_all.forward"].text
    command = remedies(overlap=True)["all_to_all.forward"].command
    assert command is not None
    assert command[-2:] == ("--wire", "any")
    assert "bucket" in remedies(overlap=True)["all_reduce"].text
    assert "core" in remedies(overlap=True, wire_dtype="bf16")["all_to_all.forward"].text
    assert "less traffic" in remedies(overlap=True, wire_dtype="bf16", communication_cores=1)["all_to_all.forward"].text


def test_more_threads_than_cores_are_a_finding(four_sockets: TunedConfig, full_config: TunedConfig) -> None:
    (finding,) = of_kind(four_sockets, "oversubscribed_cores")
    assert "4 ranks of 2 threads on 2 cores" in finding.evidence
    assert of_kind(full_config, "oversubscribed_cores") == []
    topology = full_config.fingerprint.topology.model_copy(update={"cpu_quota": 1.0})
    limited = full_config.model_copy(update={"fingerprint": full_config.fingerprint.model_copy(update={"topology": topology})})
    assert "1 CPUs' worth of time" in of_kind(limited, "oversubscribed_cores")[0].evidence


def test_a_minibatch_too_small_for_its_forks_is_a_finding(full_config: TunedConfig) -> None:
    assert of_kind(full_config, "small_minibatch") == []
    many = with_verdict(full_config, "interaction.forward", parallel_regions=3000)
    (finding,) = of_kind(many, "small_minibatch")
    assert "3003 forks and joins of 2 threads, take 7.7%" in finding.evidence
    assert "4096" in finding.remedy.text
    # What was measured counts before what the probe's figure makes of it.
    timed = with_verdict(many, "interaction.forward", parts=TimeParts(launch=0.3, off_core=0, imbalance=0, work=0.7))
    (finding,) = of_kind(timed, "small_minibatch")
    assert finding.saving_s == pytest.approx(0.3 * 0.01)


@pytest.mark.parametrize(
    ("parts", "remedy"),
    [
        (TimeParts(launch=0.6, off_core=0, imbalance=0, work=0.4), "larger minibatch or fewer threads"),
        (TimeParts(launch=0, off_core=0, imbalance=0.6, work=0.4), "finer tasks"),
        (TimeParts(launch=0, off_core=0, imbalance=0, work=1), "prefetch distance"),
    ],
)
def test_below_every_ceiling_the_remedy_follows_what_was_measured(full_config: TunedConfig, parts: TimeParts, remedy: str) -> None:
    key = "interaction.forward"
    slow = with_verdict(full_config, key, **UPDATE, parts=parts)
    raced = full_config.gains[0].model_copy(update={"operator": key, "candidates": 9})
    (finding,) = of_kind(recorded_with(slow, gains=(raced,)), "below_every_ceiling", key)
    assert remedy in finding.remedy.text
    assert of_kind(slow, "waiting_for_cores") == []


def test_threads_without_a_core_are_a_finding_of_the_iteration(full_config: TunedConfig) -> None:
    lacking = with_verdict(full_config, "embedding_bag.update", **UPDATE, parts=TimeParts(launch=0, off_core=0.5, imbalance=0, work=0.5))
    (finding,) = of_kind(lacking, "waiting_for_cores")
    assert finding.operator == "iteration"
    assert finding.saving_s == pytest.approx(0.004)
    assert "without a core for 4.00 ms" in finding.evidence
    assert "most of it in embedding_bag.update" in finding.evidence
    quiet = with_verdict(full_config, "embedding_bag.update", **UPDATE, parts=TimeParts(launch=0, off_core=0.01, imbalance=0, work=0.99))
    assert of_kind(quiet, "waiting_for_cores") == []


def test_a_machine_that_gives_less_than_probed_is_a_finding_with_what_it_costs(full_config: TunedConfig) -> None:
    bound_s = {name: sum(one.time_s.median for one in full_config.verdicts if one.binder == name) for name in ("memory", "compute")}
    shared = recorded_with(full_config, state=MachineState(memory=0.75, rows=0.75, compute=1.0))
    (finding,) = of_kind(shared, "less_bandwidth")
    assert finding.saving_s == pytest.approx(0.25 * bound_s["memory"])
    assert "memory gave 75%" in finding.evidence
    assert of_kind(shared, "slower_cores") == []
    slower = recorded_with(full_config, state=MachineState(memory=0.95, rows=0.95, compute=0.5))
    assert of_kind(slower, "less_bandwidth") == []
    assert len(of_kind(slower, "slower_cores")) == bool(bound_s["compute"])
    assert of_kind(full_config, "less_bandwidth") == []


def test_a_pass_slower_than_predicted_is_a_finding_only_within_the_calibration(full_config: TunedConfig) -> None:
    predicted = full_config.verdicts[0].predicted
    assert predicted is not None
    early = {"low_s": 0.005, "time_s": 0.006, "high_s": 0.007}
    slow = with_verdict(full_config, "embedding_bag.forward", predicted=predicted.model_copy(update=early), fractions={"memory": 0.3})
    assert of_kind(slow, "slower_than_predicted")[0].saving_s == pytest.approx(0.010)
    outside = predicted.model_copy(update={**early, "extrapolated": "rows of 4 KiB"})
    assert of_kind(with_verdict(slow, "embedding_bag.forward", predicted=outside), "slower_than_predicted") == []


def test_a_prediction_below_the_physical_bound_accuses_no_pass(full_config: TunedConfig) -> None:
    # 16 ms at 90 % of the memory ceiling: no implementation takes less than 14.4 ms.
    predicted = Prediction(low_s=0.012, time_s=0.0143, high_s=0.0150)
    below = with_verdict(full_config, "embedding_bag.forward", predicted=predicted, fractions={"memory": 0.9})
    assert of_kind(below, "slower_than_predicted") == []
    above = with_verdict(below, "embedding_bag.forward", predicted=predicted.model_copy(update={"time_s": 0.0145}))
    assert len(of_kind(above, "slower_than_predicted")) == 1


def test_findings_with_one_remedy_stand_together_in_the_order_of_their_savings(four_sockets: TunedConfig) -> None:
    findings = find(four_sockets)
    groups = grouped(findings)
    assert sorted(map(repr, (finding for group in groups for finding in group))) == sorted(map(repr, findings))
    assert all(len({(one.kind, one.remedy) for one in group}) == 1 for group in groups)
    firsts = [group[0].saving_s for group in groups]
    assert firsts == sorted(firsts, reverse=True)
