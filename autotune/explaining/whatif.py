"""What an iteration would take on another machine, with another dtype or other tables: operator by operator, before and after."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autotune.config.knobs import MAX_THREADS, RunConfig
from autotune.config.model import DTYPES, OPTIMIZERS, Changes, Model
from autotune.config.network import Network
from autotune.config.profile import Ceilings, ComputePoint, Profile, TimePoint
from autotune.config.tuned import Prediction, TunedConfig
from autotune.dlrm.defaults import default_config
from autotune.dlrm.sharding import check_partition
from autotune.errors import InputError
from autotune.explaining.terms import ranks_on_host
from autotune.perf.ceilings import fork_join_s, peak_ceiling
from autotune.perf.estimate import Estimate, OperatorEstimate, estimate
from autotune.perf.predictor import Predictor
from autotune.units import format_rate

_FACTOR = re.compile(r"(\d+(?:\.\d+)?|\.\d+)x")
_RATE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)([MGT])b")
_BITS = {"M": 1e6, "G": 1e9, "T": 1e12}
_MOST = 1e6
"""Of a factor: far above any machine, low enough to compute with."""
_EXAMPLE = "bandwidth=2x,cores=56,network=200Gb,dtype=bf16,tables=2x"


@dataclass(frozen=True)
class OperatorChange:
    """One operator pass before and after."""

    key: str
    before: Prediction
    after: Prediction
    binder_before: str
    """memory, compute, network, or none."""
    binder_after: str

    @property
    def speedup(self) -> float:
        """Before over after; above 1 the change helps."""
        return self.before.time_s / self.after.time_s if self.after.time_s else 1.0


@dataclass(frozen=True)
class WhatIf:
    """A change, and what it is predicted to do."""

    model: str
    profile: str
    changes: tuple[str, ...]
    """As understood, in words: ``bandwidth 2x: streams, and rows from beyond the caches``."""
    operators: tuple[OperatorChange, ...]
    """In the order they run; of a transfer the exposed time."""
    before: Prediction
    """The iteration."""
    after: Prediction
    notes: tuple[str, ...] = ()

    @property
    def speedup(self) -> float:
        return self.before.time_s / self.after.time_s if self.after.time_s else 1.0


@dataclass(frozen=True)
class _Case:
    """What is predicted: before, and after each change."""

    model: Model
    profile: Profile
    config: RunConfig
    words: tuple[str, ...] = ()
    on_host: int = 1
    """Ranks that share the profile's machine."""


def what_if(config: TunedConfig, changes: str, predictor: Predictor | None = None) -> WhatIf:
    """Predict the iteration of a tuned config as it is and with `changes`.

    Args:
        config: Of schema 2, which holds its model and profile.
        changes: ``bandwidth=2x,cores=56,network=200Gb,dtype=bf16,tables=2x``: any of them. A number with x is a factor; cores and
            minibatch are counts or factors; network is a rate or a factor.
        predictor: Of the config's profile, shared by several questions; None makes one.

    Raises:
        InputError: an unknown name or a value that cannot be read; a config without a model or a profile; a change that its partition
            does not allow.
    """
    if config.workload is None or config.profile is None:
        raise InputError(
            f"what-if needs the model and the profile of the tuning run, got the config of {config.model} without them; put its record "
            "beside it, or tune again, which writes both"
        )
    on_host = ranks_on_host(config)
    case = _Case(config.workload, config.profile, config.config, on_host=on_host)
    changed = case
    for text in changes.split(","):
        name, separator, value = text.strip().partition("=")
        if name not in _CHANGES or not separator:
            rule = f"a change must be one of {', '.join(_CHANGES)}"
            raise InputError(f"{rule}, got {text.strip()!r} (--what-if); write for example {_EXAMPLE}")
        changed = _CHANGES[name](changed, value.strip())
    predictor = predictor or Predictor(case.profile, on_host)
    before, after = (_predicted(which, predictor.on(which.profile), config.sockets, on_host) for which in (case, changed))
    rows = {row.key: row for row in after.operators}
    return WhatIf(
        model=case.model.name,
        profile=case.profile.name,
        changes=changed.words,
        operators=tuple(_row(row, rows[row.key]) for row in before.operators if row.key in rows),
        before=before.iteration,
        after=after.iteration,
        notes=tuple(dict.fromkeys((*before.notes, *after.notes))),
    )


def _predicted(case: _Case, predictor: Predictor, sockets: int, on_host: int) -> Estimate:
    """The laws stay those of the machine that was probed; what changes are the ceilings that their terms are counted in."""
    if case.config.partition is not None:
        check_partition(case.model, case.config.partition)  # as it would be refused when run
    return estimate(case.model, case.profile, case.config, sockets=sockets, ranks_on_host=on_host, predictor=predictor)


def _row(before: OperatorEstimate, after: OperatorEstimate) -> OperatorChange:
    return OperatorChange(before.key, _exposed(before), _exposed(after), before.binder, after.binder)


def _exposed(row: OperatorEstimate) -> Prediction:
    if row.lane == "compute" or not row.prediction.time_s:
        return row.prediction
    share = row.exposed_s / row.prediction.time_s
    return row.prediction.model_copy(
        update={"low_s": row.prediction.low_s * share, "time_s": row.exposed_s, "high_s": row.prediction.high_s * share}
    )


def _factor(name: str, value: str) -> float:
    match = _FACTOR.fullmatch(value)
    if match is None or not 0 < float(match[1]) <= _MOST:
        raise InputError(f"{name} must be a factor above 0 and up to {_MOST:g}, such as 2x, got {value!r} (--what-if); correct it")
    return float(match[1])


def _count(name: str, value: str, now: int, most: int) -> int:
    """A count, or a factor of what it is."""
    plain = value.isdecimal() and len(value) < 10
    count = int(value) if plain else max(1, round(now * _factor(name, value))) if _FACTOR.fullmatch(value) else 0
    if not 0 < count <= most:
        raise InputError(f"{name} must be a count up to {most} such as 56, or a factor such as 2x, got {value!r} (--what-if); correct it")
    return count


def _bandwidth(case: _Case, value: str) -> _Case:
    factor, ceilings, topology = _factor("bandwidth", value), case.profile.ceilings, case.profile.fingerprint.topology
    cached = max(topology.l3_bytes * max(1, topology.l3_instances), topology.l2_bytes * topology.physical_cores)
    stream = tuple(p.model_copy(update={"bandwidth_bytes_per_s": p.bandwidth_bytes_per_s * factor}) for p in ceilings.stream)

    rows = {
        name: tuple(
            p.model_copy(update={"bandwidth_bytes_per_s": p.bandwidth_bytes_per_s * (factor if p.working_set_bytes > cached else 1.0)})
            for p in getattr(ceilings, name)
        )
        for name in ("gather", "scatter")
    }
    changed = ceilings.model_copy(update={"stream": stream, **rows})
    return _machine(case, changed, f"bandwidth {value}: streams, and rows from beyond the caches")


def _compute(case: _Case, value: str) -> _Case:
    factor, ceilings = _factor("compute", value), case.profile.ceilings
    faster = {
        name: tuple(p.model_copy(update={"flops_per_s": p.flops_per_s * factor}) for p in getattr(ceilings, name))
        for name in ("fma", "gemm")
    }
    return _machine(case, ceilings.model_copy(update=faster), f"compute {value}: arithmetic, and all that cores do in cycles")


def _cores(case: _Case, value: str) -> _Case:
    """More cores of the same kind: arithmetic grows with them, memory stays what the most threads drew from it."""
    now = case.config.threads
    count = _count("cores", value, now, MAX_THREADS)
    whole = count * case.on_host  # the profile is of all ranks of the host together
    ceilings, topology = case.profile.ceilings, case.profile.fingerprint.topology
    most = max(p.threads for p in ceilings.gemm or ceilings.fma)
    if whole > most:
        ratio = whole / most

        def more(points: Sequence[ComputePoint]) -> tuple[ComputePoint, ...]:
            top = [point for point in points if point.threads == most]
            grown = (point.model_copy(update={"threads": whole, "flops_per_s": point.flops_per_s * ratio}) for point in top)
            return (*points, *grown)

        # A barrier takes a step more each time its threads double.
        barrier = TimePoint(threads=whole, time_s=fork_join_s(ceilings, most) * (1 + math.log2(ratio)))
        update = {"fma": more(ceilings.fma), "gemm": more(ceilings.gemm), "fork_join": (*ceilings.fork_join, barrier)}
        ceilings = ceilings.model_copy(update=update)
    profile = case.profile.model_copy(
        update={
            "ceilings": ceilings,
            "fingerprint": case.profile.fingerprint.model_copy(
                update={"topology": topology.model_copy(update={"physical_cores": max(whole, topology.physical_cores)})}
            ),
        }
    )
    rate = format_rate(peak_ceiling(ceilings, whole) / case.on_host, "flops")
    words = f"cores {now} -> {count}: {rate} of arithmetic; memory and last-level cache stay as they are; default knobs for the team"
    return replace(case, profile=profile, config=_retuned(case, count), words=(*case.words, words))


def _retuned(case: _Case, threads: int) -> RunConfig:
    """The default knobs of another team: tuned ones belong to the old one."""
    fresh = default_config(case.model, threads=threads)
    return case.config.model_copy(update={"threads": threads, "operators": {} if case.config.partition else fresh.operators})


def _network(case: _Case, value: str) -> _Case:
    network = case.profile.network
    if network is None:
        rule = "a network can only be changed where the profile has one"
        raise InputError(f"{rule}, got network={value} (--what-if); tune on several sockets")
    if (rate := _RATE.fullmatch(value)) is not None:
        bytes_per_s = float(rate[1]) * _BITS[rate[2]] / 8
        now = max((fit.bandwidth_bytes_per_s for fit in network.fits), default=0.0)
        if not 0 < bytes_per_s < math.inf or not now:
            raise InputError(f"network must be a rate above 0 such as 200Gb, got {value!r} (--what-if); correct it")
        factor, words = bytes_per_s / now, f"network {value}: {format_rate(bytes_per_s, 'bytes')} a rank for the fastest transfer"
    else:
        factor = _factor("network", value)
        words = f"network {value}: the bandwidth of every transfer"
    fits = tuple(fit.model_copy(update={"bandwidth_bytes_per_s": fit.bandwidth_bytes_per_s * factor}) for fit in network.fits)
    changed: Network = network.model_copy(update={"fits": fits})
    return replace(case, profile=case.profile.model_copy(update={"network": changed}), words=(*case.words, f"{words}; latencies stay"))


def _dtype(case: _Case, value: str) -> _Case:
    if value not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {value!r} (--what-if); correct it")
    words = f"dtype {value}: bytes of table rows and weights that passes read, arithmetic {case.profile.bf16_gain:.2f}x in bf16"
    model = case.model.changed(Changes(dtype=value)).model_copy(update={"name": case.model.name})
    return replace(case, model=model, words=(*case.words, words))


def _optimizer(case: _Case, value: str) -> _Case:
    if value not in OPTIMIZERS:
        raise InputError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {value!r} (--what-if); correct it")
    return replace(case, model=case.model.model_copy(update={"optimizer": value}), words=(*case.words, f"optimizer {value}"))


def _tables(case: _Case, value: str) -> _Case:
    factor = _factor("tables", value)
    tables = tuple(table.model_copy(update={"rows": max(1, round(table.rows * factor))}) for table in case.model.tables)
    partition = case.config.partition
    if partition is not None:
        placed = tuple(
            placement.model_copy(update={"bounds": _stretched(placement.bounds, table.rows)}) if placement.kind == "row_wise" else placement
            for placement, table in zip(partition.tables, tables, strict=True)
        )
        partition = partition.model_copy(update={"tables": placed})
    config = case.config.model_copy(update={"partition": partition})
    model = case.model.model_copy(update={"tables": tables})
    return replace(case, model=model, config=config, words=(*case.words, f"tables {value}: rows of every table"))


def _stretched(bounds: tuple[int, ...], rows: int) -> tuple[int, ...]:
    return (0, *(max(1, round(bound * rows / bounds[-1])) for bound in bounds[1:-1]), rows)


def _minibatch(case: _Case, value: str) -> _Case:
    count = _count("minibatch", value, case.model.minibatch, 1 << 20)
    words = f"minibatch {case.model.minibatch} -> {count}"
    return replace(case, model=case.model.model_copy(update={"minibatch": count}), words=(*case.words, words))


def _pooling(case: _Case, value: str) -> _Case:
    factor = _factor("pooling", value)
    tables = tuple(table.model_copy(update={"pooling": table.pooling * factor}) for table in case.model.tables)
    return replace(case, model=case.model.model_copy(update={"tables": tables}), words=(*case.words, f"pooling {value}"))


def _machine(case: _Case, ceilings: Ceilings, words: str) -> _Case:
    return replace(case, profile=case.profile.model_copy(update={"ceilings": ceilings}), words=(*case.words, words))


_CHANGES: dict[str, Callable[[_Case, str], _Case]] = {
    "bandwidth": _bandwidth,
    "compute": _compute,
    "cores": _cores,
    "network": _network,
    "dtype": _dtype,
    "optimizer": _optimizer,
    "tables": _tables,
    "minibatch": _minibatch,
    "pooling": _pooling,
}
