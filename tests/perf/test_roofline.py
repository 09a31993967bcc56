from __future__ import annotations

import math
import re
from itertools import product
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.config.profile import Ceilings, ComputePoint, RowPoint, StreamPoint, TimePoint
from autotune.errors import InputError
from autotune.ops.base import RowAccess, Work
from autotune.perf.ceilings import fork_join_s, gemm_ceiling, peak_ceiling, row_ceiling, stream_ceiling
from autotune.perf.roofline import Hardware, limits, verdict

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
        assert gemm_ceiling(CEILINGS, t) == 90e9 * t
        assert peak_ceiling(CEILINGS, t) == 100e9 * t
        assert fork_join_s(CEILINGS, t) == 1e-6 * t
        for kind, rate in KINDS.items():
            assert stream_ceiling(CEILINGS, kind, t) == rate * t**0.5
    for point in CEILINGS.gather:
        found = row_ceiling(CEILINGS, "gather", point.row_bytes, point.working_set_bytes, point.threads)
        assert found.bandwidth_bytes_per_s == pytest.approx(point.bandwidth_bytes_per_s)
        assert not found.extrapolated


def test_between_points_rates_are_linear_in_threads_and_in_the_logarithm_of_sizes() -> None:
    assert gemm_ceiling(CEILINGS, 6) == pytest.approx(540e9)
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
    assert gemm_ceiling(CEILINGS, 64) == gemm_ceiling(CEILINGS, 8)
    assert stream_ceiling(CEILINGS, "read", 64) == stream_ceiling(CEILINGS, "read", 8)


def test_below_the_least_thread_count_arithmetic_falls_in_proportion() -> None:
    only_all = CEILINGS.model_copy(update={"gemm": CEILINGS.gemm[-1:], "fma": CEILINGS.fma[-1:]})
    assert gemm_ceiling(only_all, 2) == pytest.approx(180e9)


def test_without_a_gemm_the_multiply_add_peak_is_the_ceiling() -> None:
    assert gemm_ceiling(CEILINGS.model_copy(update={"gemm": ()}), 4) == 400e9


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
        Work(10**6, MIB // 2, MIB, "gather", (RowAccess(256, touched=64 * MIB // 256, unique=MIB // 512, table_bytes=2 * GIB),)),
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
    found = verdict(work, work.flops / peak_ceiling(CEILINGS, 4) / share, CEILINGS, 4)
    assert found.binder == "compute"
    assert found.fractions["compute"] == pytest.approx(share)


def test_the_best_gemm_is_shown_beside_the_peak_and_is_no_bound() -> None:
    work = gemm(2048, 1024, 1024)
    found = verdict(work, work.flops / 0.88 / peak_ceiling(CEILINGS, 4), CEILINGS, 4)
    assert found.binder == "compute"
    assert found.limits.best_seen == pytest.approx(0.9)
    assert "88% of the multiply-add peak" in found.detail
    assert "best GEMM seen here reaches 90%" in found.detail
    at_best = verdict(work, work.flops / gemm_ceiling(CEILINGS, 4), CEILINGS, 4)
    assert at_best.fractions["compute"] == pytest.approx(0.9)


def test_arithmetic_in_bf16_is_held_against_the_peak_of_bf16() -> None:
    work = gemm(2048, 1024, 1024)
    fp32, bf16 = (limits(work, CEILINGS, 4, hardware=Hardware(gain=gain)).compute_s for gain in (1.0, 2.0))
    assert bf16 == pytest.approx(fp32 / 2)


def test_a_gather_near_its_ceiling_is_bound_by_memory() -> None:
    found = verdict(GATHER, limits(GATHER, CEILINGS, 4).memory_s / 0.8, CEILINGS, 4)
    assert found.binder == "memory"
    assert found.fractions["memory"] == pytest.approx(0.8)
    assert "80%" in found.detail


def test_two_near_ceilings_are_both_named() -> None:
    work = Work(flops=400 * 10**6, bytes_read=19 * 10**6, bytes_written=0)  # 1 ms of compute, 0.95 ms of memory at 4 threads
    found = verdict(work, 1.25e-3, CEILINGS, 4)
    assert found.binder == "compute"
    assert "memory is within 10%" in found.detail


def test_far_from_every_ceiling_none_binds_and_launch_is_told_apart() -> None:
    found = verdict(Work(1000, 1000, 1000), 8e-6, CEILINGS, 4)
    assert found.binder == "none"
    assert "Launch overhead is 50%" in found.detail
    assert "Launch overhead is 50% (10 fork-join)" in verdict(Work(1000, 1000, 1000, parallel_regions=10), 80e-6, CEILINGS, 4).detail


def test_a_share_above_one_names_the_ceiling_that_is_too_low() -> None:
    found = verdict(GATHER, limits(GATHER, CEILINGS, 4).memory_s / 1.24, CEILINGS, 4)
    assert found.fractions["memory"] == pytest.approx(1.24)
    assert "the memory ceiling is at least 24% too low: rows of 256 B in a working set of 2.00 GiB" in found.detail
    said, drawn = (float(word) for word in re.findall(r"(?:says|drew) ([\d.]+) GB/s", found.detail))
    assert drawn / said == pytest.approx(1.24, rel=0.01)
    flops = gemm(2048, 1024, 1024)
    quick = verdict(flops, limits(flops, CEILINGS, 4).compute_s / 1.1, CEILINGS, 4)
    assert "the compute ceiling is at least 10% too low: multiply-adds: the profile says 400 GF/s, this pass drew 440 GF/s" in quick.detail


def test_a_point_measured_while_the_machine_was_slow_lowers_no_ceiling() -> None:
    """An embedding forward at 124 %: rows of a 244 MiB table, below what a larger table reached."""
    slow = CEILINGS.model_copy(
        update={
            "gather": tuple(
                p.model_copy(update={"bandwidth_bytes_per_s": p.bandwidth_bytes_per_s / 4}) if p.working_set_bytes == 16 * MIB else p
                for p in CEILINGS.gather
            )
        }
    )
    assert row_ceiling(slow, "gather", 256, 16 * MIB, 4) == row_ceiling(CEILINGS, "gather", 256, 2 * GIB, 4)


CACHES = Hardware(own_bytes=2 * MIB, shared_bytes=32 * MIB)


@pytest.mark.parametrize("access", ["gather", "scatter"])
@given(rows=st.integers(1, 1 << 22), touched=st.integers(1, 1 << 20), width=st.sampled_from(WIDTHS), tables=st.integers(1, 4))
def test_a_pass_at_the_rates_of_its_levels_reaches_its_bound_and_never_more(
    access: Literal["gather", "scatter"], rows: int, touched: int, width: int, tables: int
) -> None:
    """Uniform rows: of the distinct ones a cache holds its capacity over all tables; repeats come at the rate of the distinct rows."""
    unique = max(1, round(-rows * math.expm1(-touched / rows)))
    of_table = RowAccess(width, touched, unique, rows * width)
    ways = 2 if access == "scatter" else 1
    work = Work(0, tables * unique * width, tables * unique * width * (ways - 1), access, (of_table,) * tables)
    own, near = (min(1.0, size / (tables * rows * width)) for size in (CACHES.own_bytes, CACHES.shared_bytes))
    time_s = 0.0
    for share, size in ((own, CACHES.own_bytes), (near - own, CACHES.shared_bytes / 2), (1 - near, rows * width)):
        time_s += share * unique / row_ceiling(CEILINGS, access, width, min(size, rows * width), 4).bandwidth_bytes_per_s
    time_s += (touched - unique) / row_ceiling(CEILINGS, access, width, unique * width, 4).bandwidth_bytes_per_s
    reached = limits(work, CEILINGS, 4, hardware=CACHES).memory_s / (ways * width * tables * time_s)
    assert reached <= 1.0 + 1e-9
    assert reached >= 0.8 or unique < 100  # a handful of distinct rows tells little of how many there are


def test_first_touches_of_a_table_that_a_cache_holds_come_at_its_rate() -> None:
    def memory_s(table_bytes: int, count: int = 1) -> float:
        rows = RowAccess(256, touched=10_000, unique=10_000, table_bytes=table_bytes)
        return limits(Work(0, 10_000 * 256 * count, 0, "gather", (rows,) * count), CEILINGS, 4, hardware=CACHES).memory_s / count

    rate = row_ceiling(CEILINGS, "gather", 256, 16 * MIB, 4).bandwidth_bytes_per_s
    assert memory_s(4 * MIB) <= 2_560_000 / rate
    assert memory_s(2 * GIB) > 2 * memory_s(4 * MIB)
    assert memory_s(16 * MIB, count=8) > memory_s(16 * MIB)  # eight tables together are more than the cache holds


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
    with pytest.raises(InputError, match="multiply-add ceilings"):
        gemm_ceiling(NOTHING, 1)
    with pytest.raises(InputError, match="threads"):
        gemm_ceiling(CEILINGS, 0)
    with pytest.raises(InputError, match="row_bytes"):
        row_ceiling(CEILINGS, "gather", 0, GIB, 1)
    assert fork_join_s(NOTHING, 4) == 0.0
