from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.config.profile import Ceilings, ComputePoint, RowPoint, StreamPoint, TimePoint
from autotune.errors import InputError
from autotune.ops.base import RowAccess, Work
from autotune.perf.roofline import compute_ceiling, fork_join_s, limits, peak_ceiling, row_ceiling, stream_ceiling, verdict

MIB, GIB = 1 << 20, 1 << 30
THREADS = (1, 4, 8)
WIDTHS = (64, 256, 1024)
SETS = (MIB // 2, 16 * MIB, 2 * GIB)
KINDS = {"read": 10e9, "copy": 8e9, "triad": 9e9, "copy_nt": 12e9, "update": 11e9}


def rows(factor: float) -> tuple[RowPoint, ...]:
    """Faster with wider rows, smaller working sets and more threads."""
    return tuple(
        RowPoint(row_bytes=w, working_set_bytes=s, threads=t, bandwidth_bytes_per_s=factor * 1e9 * t**0.5 * (1 + i) * (3 - j))
        for t, (i, w), (j, s) in product(THREADS, enumerate(WIDTHS), enumerate(SETS))
    )


CEILINGS = Ceilings(
    fma=tuple(ComputePoint(threads=t, flops_per_s=100e9 * t) for t in THREADS),
    gemm=tuple(ComputePoint(threads=t, flops_per_s=90e9 * t) for t in THREADS),
    stream=tuple(StreamPoint(kind=k, threads=t, bandwidth_bytes_per_s=rate * t**0.5) for t in THREADS for k, rate in KINDS.items()),
    gather=rows(1.0),
    scatter=rows(1.5),
    fork_join=tuple(TimePoint(threads=t, time_s=1e-6 * t) for t in THREADS),
)
NOTHING = Ceilings(fma=(), gemm=(), stream=(), gather=(), scatter=(), fork_join=())

GATHER = Work(
    flops=10**6,
    bytes_read=64 * MIB,
    bytes_written=MIB,
    access="gather",
    rows=(RowAccess(256, touched=64 * MIB // 256, unique=64 * MIB // 256, table_bytes=2 * GIB),),
)


def gemm(n: int, c: int, k: int) -> Work:
    return Work(flops=2 * n * c * k, bytes_read=4 * (n * c + c * k), bytes_written=4 * n * k)


def test_measured_points_are_hit() -> None:
    for t in THREADS:
        assert compute_ceiling(CEILINGS, t) == 90e9 * t
        assert peak_ceiling(CEILINGS, t) == 100e9 * t
        assert fork_join_s(CEILINGS, t) == 1e-6 * t
        for kind, rate in KINDS.items():
            assert stream_ceiling(CEILINGS, kind, t) == rate * t**0.5
    for point in CEILINGS.gather:
        found = row_ceiling(CEILINGS, "gather", point.row_bytes, point.working_set_bytes, point.threads)
        assert found.bandwidth_bytes_per_s == pytest.approx(point.bandwidth_bytes_per_s)
        assert not found.extrapolated


def test_between_points_rates_are_linear_in_threads_and_in_the_logarithm_of_sizes() -> None:
    assert compute_ceiling(CEILINGS, 6) == pytest.approx(540e9)
    low, high = (row_ceiling(CEILINGS, "gather", width, 16 * MIB, 4).bandwidth_bytes_per_s for width in (64, 256))
    assert row_ceiling(CEILINGS, "gather", 128, 16 * MIB, 4).bandwidth_bytes_per_s == pytest.approx((low + high) / 2)


def test_outside_the_points_the_nearest_counts_and_is_flagged() -> None:
    for width, size, word in ((16, MIB, "rows"), (4096, MIB, "rows"), (256, 64 * GIB, "working set")):
        found = row_ceiling(CEILINGS, "scatter", width, size, 4)
        inside = row_ceiling(CEILINGS, "scatter", min(max(width, 64), 1024), min(max(size, SETS[0]), SETS[-1]), 4)
        assert found.bandwidth_bytes_per_s == inside.bandwidth_bytes_per_s
        assert word in found.extrapolated
    within_l2 = row_ceiling(CEILINGS, "scatter", 256, 1024, 4)
    assert within_l2 == row_ceiling(CEILINGS, "scatter", 256, SETS[0], 4)
    assert compute_ceiling(CEILINGS, 64) == compute_ceiling(CEILINGS, 8)
    assert stream_ceiling(CEILINGS, "read", 64) == stream_ceiling(CEILINGS, "read", 8)


def test_below_the_least_thread_count_arithmetic_falls_in_proportion() -> None:
    only_all = CEILINGS.model_copy(update={"gemm": CEILINGS.gemm[-1:], "fma": CEILINGS.fma[-1:]})
    assert compute_ceiling(only_all, 2) == pytest.approx(180e9)


def test_without_a_gemm_the_multiply_add_peak_is_the_ceiling() -> None:
    assert compute_ceiling(CEILINGS.model_copy(update={"gemm": ()}), 4) == 400e9


def test_the_peak_is_never_below_the_gemm() -> None:
    assert peak_ceiling(CEILINGS.model_copy(update={"fma": ()}), 4) == 360e9


@given(width=st.integers(1, 8192), size=st.integers(1, 1 << 40), threads=st.integers(1, 16), more=st.floats(1, 16))
def test_rates_follow_the_points(width: int, size: int, threads: int, more: float) -> None:
    rate = row_ceiling(CEILINGS, "gather", width, size, threads).bandwidth_bytes_per_s
    slack = 1 + 1e-12
    assert row_ceiling(CEILINGS, "gather", int(width * more), size, threads).bandwidth_bytes_per_s * slack >= rate
    assert row_ceiling(CEILINGS, "gather", width, int(size * more), threads).bandwidth_bytes_per_s <= rate * slack
    assert row_ceiling(CEILINGS, "gather", width, size, threads + 1).bandwidth_bytes_per_s * slack >= rate
    rates = [point.bandwidth_bytes_per_s for point in CEILINGS.gather]
    assert min(rates) / slack <= rate <= max(rates) * slack


@given(
    read=st.integers(0, 1 << 34),
    written=st.integers(0, 1 << 34),
    extra=st.integers(0, 1 << 30),
    flops=st.integers(0, 10**12),
    threads=st.integers(1, 8),
)
def test_more_work_never_takes_less_time(read: int, written: int, extra: int, flops: int, threads: int) -> None:
    base = limits(Work(flops, read, written), CEILINGS, threads)
    for work in (Work(flops + extra, read, written), Work(flops, read + extra, written), Work(flops, read, written + extra)):
        more = limits(work, CEILINGS, threads)
        assert more.bound_s >= base.bound_s * (1 - 1e-12)
        assert more.memory_s >= base.memory_s * (1 - 1e-12)
    assert limits(Work(flops, read, written), CEILINGS, threads + 1).bound_s <= base.bound_s * (1 + 1e-12)


def test_streams_pair_reads_with_writes() -> None:
    best, read = 12e9 * 2, 10e9 * 2
    assert limits(Work(0, 10**9, 0), CEILINGS, 4).memory_s == pytest.approx(1e9 / read)
    assert limits(Work(0, 10**9, 10**9), CEILINGS, 4).memory_s == pytest.approx(2e9 / best)
    assert limits(Work(0, 3 * 10**9, 10**9), CEILINGS, 4).memory_s == pytest.approx(2e9 / best + 2e9 / read)
    assert limits(Work(0, 0, 10**9), CEILINGS, 4).memory_s == pytest.approx(1e9 / best)


def test_warm_streams_may_come_from_a_cache() -> None:
    work = Work(0, MIB // 2, 0)
    assert limits(work, CEILINGS, 1, warm=True).memory_s <= limits(work, CEILINGS, 1).memory_s
    fast = CEILINGS.model_copy(update={"gather": rows(100.0)})
    assert limits(work, fast, 1, warm=True).memory_s < 0.1 * limits(work, fast, 1).memory_s


def test_rows_touched_again_come_from_the_cache_that_holds_them() -> None:
    all_distinct = limits(GATHER, CEILINGS, 4).memory_s
    reused = limits(
        Work(
            10**6, MIB // 2, MIB, "gather", (RowAccess(256, touched=64 * MIB // 256, unique=MIB // 512, table_bytes=2 * GIB),)
        ),
        CEILINGS,
        4,
    ).memory_s
    slow, fast = (row_ceiling(CEILINGS, "gather", 256, size, 4).bandwidth_bytes_per_s for size in (2 * GIB, MIB // 2))
    output_s = MIB / 24e9
    assert all_distinct == pytest.approx(64 * MIB / slow + output_s)
    assert reused == pytest.approx(MIB / 2 / slow + 63.5 * MIB / fast + output_s)


def test_scatter_counts_rows_read_and_written_and_streams_the_gradient() -> None:
    unique, gradient = 32 * MIB, MIB
    work = Work(1, unique + gradient, unique, "scatter", (RowAccess(256, unique // 256, unique // 256, 2 * GIB),))
    rate = row_ceiling(CEILINGS, "scatter", 256, 2 * GIB, 4).bandwidth_bytes_per_s
    assert limits(work, CEILINGS, 4).memory_s == pytest.approx(2 * unique / rate + gradient / 20e9)


def test_tables_are_judged_one_by_one() -> None:
    small, large = RowAccess(256, 1000, 800, MIB), RowAccess(256, 5000, 5000, 2 * GIB)
    both, *apart = (limits(Work(0, 0, 0, "gather", rows), CEILINGS, 4).memory_s for rows in ((small, large), (small,), (large,)))
    assert both == pytest.approx(sum(apart))


def test_no_look_ups_take_no_time() -> None:
    empty = Work(0, 0, 0, "gather", (RowAccess(256, 0, 0, GIB),))
    assert limits(empty, CEILINGS, 4).bound_s == 0.0


@given(share=st.floats(0.6, 1.0), size=st.sampled_from([512, 1024, 4096]))
def test_a_gemm_near_its_ceiling_is_bound_by_compute(share: float, size: int) -> None:
    work = gemm(2048, size, size)
    found = verdict(work, work.flops / compute_ceiling(CEILINGS, 4) / share, CEILINGS, 4)
    assert found.binder == "compute"
    assert found.fractions["compute"] == pytest.approx(share)
    assert found.limits.peak_s < found.limits.compute_s


def test_a_gather_near_its_ceiling_is_bound_by_memory() -> None:
    found = verdict(GATHER, limits(GATHER, CEILINGS, 4).memory_s / 0.8, CEILINGS, 4)
    assert found.binder == "memory"
    assert found.fractions["memory"] == pytest.approx(0.8)
    assert "80%" in found.detail


def test_two_near_ceilings_are_both_named() -> None:
    work = Work(flops=360 * 10**6, bytes_read=19 * 10**6, bytes_written=0)  # 1 ms of compute, 0.95 ms of memory at 4 threads
    found = verdict(work, 1.25e-3, CEILINGS, 4)
    assert found.binder == "compute"
    assert "memory is within 10%" in found.detail


def test_far_from_every_ceiling_none_binds_and_launch_is_told_apart() -> None:
    found = verdict(Work(1000, 1000, 1000), 8e-6, CEILINGS, 4)
    assert found.binder == "none"
    assert "Launch overhead is 50%" in found.detail
    assert "Launch overhead is 50% (10 fork-join)" in verdict(Work(1000, 1000, 1000, parallel_regions=10), 80e-6, CEILINGS, 4).detail


def test_a_share_above_one_is_reported_and_explained() -> None:
    found = verdict(GATHER, limits(GATHER, CEILINGS, 4).memory_s / 1.5, CEILINGS, 4)
    assert found.fractions["memory"] == pytest.approx(1.5)
    assert "came from a cache" in found.detail


def test_an_extrapolated_ceiling_is_said() -> None:
    work = Work(1, GIB, 0, "gather", (RowAccess(256, GIB // 256, GIB // 256, 64 * GIB),))
    assert "64.0 GiB" in verdict(work, 1.0, CEILINGS, 4).detail


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(InputError, match="time_s"):
        verdict(GATHER, 0.0, CEILINGS, 4)
    with pytest.raises(InputError, match="gather ceilings"):
        limits(GATHER, CEILINGS.model_copy(update={"gather": ()}), 4)
    with pytest.raises(InputError, match="stream read"):
        limits(Work(0, 1, 1), NOTHING, 4)
    with pytest.raises(InputError, match="gemm ceilings"):
        compute_ceiling(NOTHING, 1)
    with pytest.raises(InputError, match="threads"):
        compute_ceiling(CEILINGS, 0)
    with pytest.raises(InputError, match="row_bytes"):
        row_ceiling(CEILINGS, "gather", 0, GIB, 1)
    assert fork_join_s(NOTHING, 4) == 0.0
