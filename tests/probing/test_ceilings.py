"""Structure and sanity of a measurement; no thresholds on speed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from machines import bare

from autotune.bench.rounds import Measurement, Round
from autotune.bench.samples import Samples
from autotune.catalog import load_model_by_name
from autotune.config.profile import Ceilings, Topology
from autotune.dlrm.defaults import default_config
from autotune.errors import InputError, MachineError
from autotune.machine.topology import detect
from autotune.ops.native import kernels
from autotune.perf.estimate import estimate
from autotune.probing.ceilings import BestLoops, best_loops, measure_ceilings, measured_again, thread_counts
from autotune.probing.loops import ROW_BYTES, Arrays, Loop, Sizes, cached_walk, choose_sizes, loops_at, permutation_slice
from autotune.probing.probe import probe

MIB, GIB = 1 << 20, 1 << 30


class Steps:
    """A progress that adds up."""

    def __init__(self) -> None:
        self.total: float | None = None
        self.done = 0.0

    def phase(self, name: str, total: float | None) -> None:
        self.total = total

    def advance(self, amount: float, detail: str = "") -> None:
        self.done += amount

    def note(self, message: str) -> None:
        pass


@pytest.fixture(scope="module")
def quick() -> tuple[Ceilings, tuple[str, ...], Steps]:
    steps = Steps()
    found = measure_ceilings(detect(), budget_s=2.0, progress=steps, quick=True)
    return found.ceilings, found.notes, steps


def test_every_pattern_is_measured_at_every_thread_count(quick: tuple[Ceilings, tuple[str, ...], Steps]) -> None:
    ceilings, _, _ = quick
    counts = set(thread_counts(detect()))
    for points in (ceilings.fma, ceilings.gemm, ceilings.stream, ceilings.gather, ceilings.scatter, ceilings.fork_join):
        assert {point.threads for point in points} == counts
    assert {point.kind for point in ceilings.stream} == {"read", "copy", "triad", "copy_nt", "update"}
    assert len({point.row_bytes for point in ceilings.gather}) == len({point.row_bytes for point in ceilings.scatter}) == 2
    assert all(point.shape for point in ceilings.gemm)


def test_every_figure_is_positive_and_no_point_comes_twice(quick: tuple[Ceilings, tuple[str, ...], Steps]) -> None:
    ceilings, notes, _ = quick
    assert all(p.flops_per_s > 0 for p in (*ceilings.fma, *ceilings.gemm))
    assert all(p.bandwidth_bytes_per_s > 0 for p in (*ceilings.stream, *ceilings.gather, *ceilings.scatter))
    assert all(p.time_s > 0 for p in ceilings.fork_join)
    for points in (ceilings.gather, ceilings.scatter):
        keys = [(p.threads, p.row_bytes, p.working_set_bytes) for p in points]
        assert keys == sorted(set(keys))
    assert any("not a measurement" in note for note in notes)


def test_progress_ends_at_its_total(quick: tuple[Ceilings, tuple[str, ...], Steps]) -> None:
    steps = quick[2]
    assert steps.done == steps.total


LOOPS = [Loop(("fma",), "", lambda: None, 8.0), Loop(("stream", "read"), "", lambda: None, 4.0), Loop(("gemm",), "x", lambda: None, 6.0)]


def measured(*times_s: tuple[float, ...], disturbed: tuple[int, ...] = (), repeated: tuple[int, ...] = ()) -> Measurement:
    """Made-up rounds: the times of every loop of `LOOPS`, round by round."""
    names = [f"{loop.point} {loop.variant}" for loop in LOOPS]
    rounds = tuple(
        Round(i, {name: (time_s,) for name, time_s in zip(names, taken, strict=True)}, "noise" * (i in disturbed), i not in repeated, 1.0)
        for i, taken in enumerate(zip(*times_s, strict=True))
    )
    samples = {name: Samples(tuple(one.times_s[name][0] for one in rounds if one.counts)) for name in names}
    return Measurement(rounds, samples, ("a note",))


QUIET, VARIED = (1.0, 1.0, 1.0, 1.0), (1.0, 2.0, 3.0, 4.0)


def test_ceilings_that_varied_are_disturbed() -> None:
    best = best_loops(LOOPS, measured(QUIET, VARIED, QUIET))
    assert best.rates == {("fma",): (8.0, ""), ("stream", "read"): (4.0 / 2.5, ""), ("gemm",): (6.0, "x")}
    assert best.disturbed == {("stream", "read")}
    assert best.notes == ("a note", "1 of 3 ceilings varied by more than 20% between quartiles")


def test_all_ceilings_are_disturbed_where_most_rounds_were() -> None:
    """Steady foreign load varies nothing, and takes its part of everything."""
    assert best_loops(LOOPS, measured(QUIET, QUIET, QUIET, disturbed=(0, 1))).disturbed == frozenset()
    assert best_loops(LOOPS, measured(QUIET, QUIET, QUIET, disturbed=(0, 1, 3))).disturbed == {loop.point for loop in LOOPS}


def test_under_foreign_load_the_fastest_of_all_rounds_counts_a_repeated_one_too() -> None:
    best = best_loops(LOOPS, measured(QUIET, (2.0, 4.0, 4.0, 4.0), QUIET, disturbed=(0, 1), repeated=(0,)))
    assert best.rates["stream", "read"] == (2.0, "")


def loops_with(share: float) -> BestLoops:
    points: list[tuple[Any, ...]] = [("stream", i) for i in range(10)]
    return BestLoops({point: (1.0, "") for point in points}, frozenset(points[: round(10 * share)]))


def test_a_disturbed_thread_count_is_measured_again_and_the_less_disturbed_result_kept() -> None:
    shares = {1: [0.2, 0.0], 2: [1.0, 0.3], 4: [0.7, 0.9]}
    asked: list[int] = []

    def measure(count: int, budget_s: float) -> BestLoops:
        asked.append(count)
        return loops_with(shares[count][asked.count(count) - 1])

    best = measured_again((1, 2, 4), measure, 10.0)
    assert asked == [1, 2, 4, 2, 4]
    assert [len(best[count].disturbed) for count in (1, 2, 4)] == [2, 3, 7]
    assert all("measured twice" in best[count].notes[0] for count in (2, 4))


def test_a_profile_whose_ceilings_varied_warns_in_the_first_note_of_every_result() -> None:
    profile = bare().model_copy(update={"disturbed": 55 / 58})
    assert "95% of its ceilings varied" in profile.warnings[0]
    model = load_model_by_name("tiny")
    assert estimate(model, profile, default_config(model, detect())).notes[0] == profile.warnings[0]
    assert estimate(model, bare(), default_config(model, detect())).notes[:1] != profile.warnings


def test_torch_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    ceilings = measure_ceilings(detect(), budget_s=0.1, threads=[1], quick=True).ceilings
    assert torch.get_num_threads() == before
    assert {p.threads for p in ceilings.fma} == {1}


def test_a_profile_names_its_machine_and_target() -> None:
    profile = probe(quick=True, name="mine")
    assert (profile.name, profile.source) == ("mine", "measured by autotune probe")
    assert profile.fingerprint.target == kernels.target()
    assert profile.created.endswith("+00:00")


def test_thread_counts_are_the_powers_of_two_and_all_cores(topology: Topology) -> None:
    wide = topology.model_copy(update={"physical_cores": 56})
    assert thread_counts(wide) == (1, 2, 4, 8, 16, 32, 56)
    assert thread_counts(wide.model_copy(update={"physical_cores": 1})) == (1,)
    assert thread_counts(wide, [8, 2, 8]) == (2, 8)


@pytest.mark.parametrize("wrong", [[0], [57], []])
def test_thread_counts_that_the_machine_does_not_have_are_refused(topology: Topology, wrong: list[int]) -> None:
    with pytest.raises(InputError, match="56 physical cores"):
        thread_counts(topology.model_copy(update={"physical_cores": 56}), wrong)


def test_arrays_pass_all_last_level_caches(topology: Topology) -> None:
    sizes = choose_sizes(topology.model_copy(update={"l3_bytes": 96 * MIB, "l3_instances": 4}), 256 * GIB)
    assert sizes.stream_bytes == 4 * 4 * 96 * MIB
    assert sizes.memory_bytes == (256 * MIB, 512 * MIB, 2 * GIB)
    assert sizes.l2_bytes == topology.l2_bytes // 2
    assert sizes.l3_bytes == 48 * MIB
    assert sizes.row_bytes == ROW_BYTES


@given(
    cores=st.integers(1, 192),
    l3_mib=st.sampled_from([0, 16, 105, 384, 1152]),
    instances=st.integers(1, 24),
    available=st.integers(512 * MIB, 4096 * GIB),
)
def test_nothing_is_allocated_beyond_the_memory_available(
    topology: Topology, cores: int, l3_mib: int, instances: int, available: int
) -> None:
    caches = {"l2_bytes": 2 * MIB, "l3_bytes": l3_mib * MIB, "l3_instances": instances}
    sizes = choose_sizes(topology.model_copy(update={"physical_cores": cores} | caches), available)
    assert _planned_bytes(sizes, cores) <= available
    assert all(size >= 1024 and size & (size - 1) == 0 for size in sizes.memory_bytes)


def _planned_bytes(sizes: Sizes, threads: int) -> int:
    """Tables, streams, matrices and lists of 8 bytes a row, of every row width."""
    per_row_byte = sum(8 / width for width in sizes.row_bytes)
    tables = sum(sizes.memory_bytes) + 2 * sizes.l2_bytes * threads + sizes.l3_bytes
    slices = min(sum(sizes.memory_bytes), 2 * max(2 * sizes.window_bytes * threads, 2 * sizes.cache_bytes + sizes.window_bytes * threads))
    walks = max(sizes.window_bytes, sizes.l2_bytes) + max(sizes.window_bytes, sizes.l3_bytes) + 2 * sizes.window_bytes
    matrices = 4 * 4 * 1088 * min(max(2048, 256 * threads), sizes.gemm_rows)
    return round(tables + 3 * sizes.stream_bytes + per_row_byte * (slices + walks * threads) + matrices)


def test_too_little_memory_is_refused(topology: Topology) -> None:
    with pytest.raises(MachineError, match="available"):
        choose_sizes(topology, 100 * MIB)


@given(bits=st.integers(0, 12), seed=st.integers(0, 2000))
def test_slices_make_up_a_permutation(bits: int, seed: int) -> None:
    rows = 1 << bits
    cut = rows // 3
    slices = np.concatenate([permutation_slice(0, cut, bits, seed), permutation_slice(cut, rows - cut, bits, seed)])
    assert sorted(slices.tolist()) == list(range(rows))


def test_a_permutation_slice_jumps_about() -> None:
    rows = permutation_slice(1000, 10_000, 20, seed=64)
    steps = np.diff(rows)
    assert len(np.unique(steps)) > 9000
    assert 0.2 * 2**20 < np.abs(steps).mean() < 0.5 * 2**20


@given(share=st.integers(1, 50), threads=st.integers(1, 5), passes=st.integers(1, 3))
def test_owners_walk_rows_of_their_own(share: int, threads: int, passes: int) -> None:
    walked = cached_walk(share * threads, threads, passes, own=True).reshape(threads, -1)
    for thread, rows in enumerate(walked):
        assert sorted(rows.tolist()) == sorted(list(range(share * thread, share * (thread + 1))) * passes)


def test_readers_walk_all_rows() -> None:
    walked = cached_walk(30, 3, 2, own=False).reshape(6, 30)
    assert (np.sort(walked, axis=1) == np.arange(30)).all()


def test_variants_of_a_point_have_names_of_their_own(topology: Topology) -> None:
    sizes = choose_sizes(topology, 8 * GIB, quick=True)
    loops = loops_at(2, sizes, Arrays(2))
    names = [(loop.point, loop.variant) for loop in loops]
    assert len(set(names)) == len(names)
    assert all(loop.warm == (loop.point[2] not in sizes.memory_bytes) for loop in loops if loop.point[0] in ("gather", "scatter"))
