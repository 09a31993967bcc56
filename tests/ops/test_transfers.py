"""Transfers go through one place, which takes contiguous tensors only, and under names that warn nobody."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import pytest
import torch

import autotune
from autotune.ops.native import dist
from autotune.probing.network import reduce_scatter_call

PACKAGE = Path(autotune.__file__).parent
DIRECT = {"ops/native.py", "ranks/group.py"}
"""The place itself, and what makes the group and moves objects, which are pickled."""


def test_a_strided_view_is_refused_by_every_transfer() -> None:
    view, whole = torch.zeros(4, 4)[:, :2], torch.zeros(8)
    for call in (
        lambda: dist.all_reduce(view),
        lambda: dist.reduce(view, 0),
        lambda: dist.broadcast(view, 0),
        lambda: dist.all_to_all_single(view, whole),
        lambda: dist.scatter(whole, [whole, view]),
        lambda: dist.gather(whole, gather_list=[view]),
        lambda: dist.send(view, 1),
        lambda: dist.all_gather_into_tensor(view, whole),
        lambda: reduce_scatter_call()(view, whole),
    ):
        with pytest.raises(AssertionError, match=r"takes contiguous tensors, got strides \(4, 1\)"):
            call()


def test_no_module_moves_tensors_past_it() -> None:
    direct = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            if any(name.startswith("torch.distributed") for name in names):
                direct.add(str(path.relative_to(PACKAGE)))
    assert direct == DIRECT
    calls = {node.attr for node in ast.walk(ast.parse((PACKAGE / "ranks/group.py").read_text())) if isinstance(node, ast.Attribute)}
    assert not calls & {"all_reduce", "reduce", "broadcast", "scatter", "gather", "all_to_all_single", "all_gather"}


def test_no_transfer_warns_of_its_name(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            part, whole = torch.zeros(4), torch.arange(4.0)
            reduce_scatter_call()(part, whole)
            assert torch.equal(part, whole)
            dist.all_reduce(whole)
            dist.broadcast(whole, 0)
            dist.all_to_all_single(part, whole)
            dist.gather(whole, [part], dst=0)
            dist.scatter(part, [whole], src=0)
            dist.barrier()
    finally:
        dist.destroy_process_group()
