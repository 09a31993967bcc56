"""Which network interfaces the ranks could talk through, and how fast each is: a wrong one may be a hundred times slower."""

from __future__ import annotations

import os
import socket
import statistics
import time
from datetime import timedelta

import torch

from autotune.config.network import InterfaceRate
from autotune.ops.native import dist
from autotune.ranks import group
from autotune.ranks.interfaces import LOOPBACK, VARIABLE, addresses

_BYTES = 1 << 20
_ROUNDS = 5
_TIMEOUT_S = 5.0


def hosts() -> int:
    """On how many hosts the ranks are: those with the same addresses, and the same name, are on one. Every rank calls it."""
    return len(set(map(str, group.gather(f"{socket.gethostname()} {sorted(addresses().items())}"))))


def rates(backend: str = "gloo") -> tuple[InterfaceRate, ...]:
    """Every interface that all ranks have, with the rate at which they exchange 1 MiB through it. Every rank calls it.

    Only gloo lets one choose; other backends have no candidates here.
    """
    if backend != "gloo":
        return ()
    own = addresses()
    if hosts() > 1:
        own.pop(LOOPBACK, None)  # leads nowhere from one host to the next
    common = set(own).intersection(*group.gather(list(own)))
    return tuple(InterfaceRate(name=name, bandwidth_bytes_per_s=_rate(name), used=False) for name in sorted(common))


def _rate(name: str) -> float | None:
    """Bytes per second that each rank sends; None where a rank does not reach the others."""
    ranks = dist.get_world_size()
    data = torch.zeros(_BYTES // ranks * ranks, dtype=torch.uint8)
    out = torch.empty_like(data)
    times, failed, before = [], "", os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        subgroup = dist.new_group(backend="gloo", timeout=timedelta(seconds=_TIMEOUT_S))
        for _ in range(_ROUNDS + 1):
            begin_s = time.perf_counter()
            dist.all_to_all_single(out, data, group=subgroup)
            times.append(time.perf_counter() - begin_s)
    except (RuntimeError, ValueError) as error:
        failed = str(error).splitlines()[0]
    finally:
        del os.environ[VARIABLE]
        os.environ.update({VARIABLE: before} if before is not None else {})
    medians_s, failures = zip(*group.gather((statistics.median(times[1:] or [0.0]), failed)), strict=True)
    return None if any(failures) else float(data.numel() * (ranks - 1) / ranks / max(medians_s))
