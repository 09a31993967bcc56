#!/usr/bin/env bash
# gloo collectives on a strided view: wrong values, and elements outside the view overwritten, without an error.
#
# torch 2.13.0 (CPU; the same with 2.14.1), backend gloo, two ranks on one host. A tensor `base[:, ::2]` is a valid argument, and
# all_gather treats it as one. But all_reduce, reduce, broadcast, scatter and the output of all_to_all_single walk the memory behind it
# as if it were contiguous: of a [2, 4] base, they fill the first row, skipped columns included, and leave the second row alone.
# `tensor.contiguous()` and a copy back gives the right values.
#
# Seen on rank 1, where both ranks begin with base = rank + 1 (all_reduce, reduce, broadcast) or 9 everywhere; expected is what the view
# should hold, with the skipped columns as they were:
#   all_reduce            [[3, 3, 3, 3], [2, 2, 2, 2]]      expected [[3, 2, 3, 2], [3, 2, 3, 2]]
#   broadcast from 0      [[1, 1, 1, 1], [2, 2, 2, 2]]      expected [[1, 2, 1, 2], [1, 2, 1, 2]]
#   scatter of 5s and 6s  [[6, 6, 6, 6], [9, 9, 9, 9]]      expected [[6, 9, 6, 9], [6, 9, 6, 9]]
#   all_to_all_single     [[2, 3, 12, 13], [9, 9, 9, 9]]    expected [[2, 9, 3, 9], [12, 9, 13, 9]]
#   all_gather            [[1, 9, 1, 9], [1, 9, 1, 9]]      as expected
#
# Exits with 1 where any of these changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy

cat >"$work/views.py" <<'PY'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def strided(value):
    base = torch.full((2, 4), float(value))
    return base, base[:, ::2]


def rank_main(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    held = {}

    base, view = strided(rank + 1)
    dist.all_reduce(view)
    held["all_reduce"] = base

    base, view = strided(rank + 1)
    dist.broadcast(view, 0)
    held["broadcast"] = base

    base, view = strided(9)
    dist.scatter(view, [torch.full((2, 2), 5.0), torch.full((2, 2), 6.0)] if rank == 0 else None, 0)
    held["scatter"] = base

    base, view = strided(9)
    dist.all_to_all_single(view, torch.arange(4.0).view(2, 2) + 10 * rank)
    held["all_to_all_single"] = base

    base, view = strided(9)
    dist.all_gather([view, torch.zeros(2, 2)], torch.full((2, 2), float(rank + 1)))
    held["all_gather"] = base

    dist.barrier()
    dist.destroy_process_group()
    if rank == 1:
        seen = {
            "all_reduce": [[3, 3, 3, 3], [2, 2, 2, 2]],
            "broadcast": [[1, 1, 1, 1], [2, 2, 2, 2]],
            "scatter": [[6, 6, 6, 6], [9, 9, 9, 9]],
            "all_to_all_single": [[2, 3, 12, 13], [9, 9, 9, 9]],
            "all_gather": [[1, 9, 1, 9], [1, 9, 1, 9]],
        }
        changed = [name for name, values in seen.items() if held[name].tolist() != values]
        for name, base in held.items():
            print(f"{name:<18} {base.long().tolist()}{'   changed' if name in changed else ''}", flush=True)
        sys.exit(1 if changed else 0)


if __name__ == "__main__":
    mp.spawn(rank_main, (sys.argv[1],), 2)
PY
GLOO_SOCKET_IFNAME=lo "$work/venv/bin/python" -W ignore "$work/views.py" "$work"
