"""What `test_digests` runs: trains for 20 steps in every way a step can be configured and writes a digest of what each computed.

digest_cases.py FOLDER    all cases of one rank to FOLDER/alone.json, all cases of two ranks to FOLDER/ranks.json
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, product
from pathlib import Path

import torch.distributed as dist
from forked import run_forked

from autotune.config.knobs import RunConfig
from autotune.config.model import DTYPES, OPTIMIZERS, Changes, DataSpec, Model, Table
from autotune.config.partition import ALL_TO_ALL_FORMS, CommunicationKnobs, Kind, Partition, Placement
from autotune.data.batches import Batch, make_source
from autotune.dlrm.model import DLRM
from autotune.ops.embedding_bag import strategies
from autotune.ops.embedding_tables import EmbeddingUpdateKnobs
from autotune.ops.memory import World

STEPS = 20
RANKS = 2
DIM = 32
ROWS = (500, 7, 3, 120, 64)
POOLING = (3.0, 1.0, 2.0, 4.0, 0.5)
_DENSE = (1, 2)
"""Tables of so few rows that the gradient of a replica is reduced densely; those of the others travel sparsely."""
BUCKETS = {"small": 1 << 10, "large": 1 << 20}
"""Bytes of a bucket that every gradient fills, and of one that holds all of them."""


def small_model(minibatch: int) -> Model:
    """Bags of varying length, empty ones among them."""
    return Model(
        schema=1,
        name="digests",
        source="test",
        description="test",
        minibatch=minibatch,
        learning_rate=0.1,
        data=DataSpec(pooling_kind="varying"),
        bottom_mlp=(5, 24, DIM),
        top_mlp=(40, 1),
        tables=tuple(Table(rows=rows, dim=DIM, pooling=pooling) for rows, pooling in zip(ROWS, POOLING, strict=True)),
    )


def cases_of_one_rank() -> Iterator[tuple[str, Model, RunConfig]]:
    """Every update strategy that a dtype and an optimizer take; the atomic one in one thread, where its additions have an order."""
    for dtype, optimizer in product(DTYPES, OPTIMIZERS):
        model = small_model(100).changed(Changes(dtype=dtype, optimizer=optimizer))
        for strategy in strategies(dtype, optimizer):
            threads = 1 if strategy == "atomic" else 2
            yield f"{dtype} {optimizer} {strategy}", model, _config(None, None, strategy, threads)
    for optimizer, strategy in (("sgd", "bucketed"), ("sgd", "unfused"), ("adagrad", "race_free_modulo")):
        model = small_model(100).changed(Changes(dtype="bf16", table_storage="stochastic", optimizer=optimizer))
        yield f"stochastic {optimizer} {strategy}", model, _config(None, None, strategy, 2)


def _place(kind: Kind, table: int) -> Placement:
    if kind == "table_wise":
        return Placement(kind=kind, ranks=(table % RANKS,))
    if kind == "replicated":
        return Placement(kind=kind)
    extent = ROWS[table] if kind == "row_wise" else DIM
    return Placement(kind=kind, ranks=(1, 0), bounds=(0, extent // 3, extent))


def partitions() -> dict[str, Partition]:
    """Every kind by itself, replicas by how their gradients travel, and all kinds together."""
    kinds: dict[str, list[Kind]] = {kind: [kind] * len(ROWS) for kind in ("table_wise", "row_wise", "column_wise")}
    kinds["replicated_dense"] = ["replicated" if t in _DENSE else "table_wise" for t in range(len(ROWS))]
    kinds["replicated_sparse"] = ["table_wise" if t in _DENSE else "replicated" for t in range(len(ROWS))]
    kinds["mixed"] = ["row_wise", "replicated", "table_wise", "replicated", "column_wise"]
    return {name: _partition(table_kinds) for name, table_kinds in kinds.items()}


def _partition(table_kinds: Sequence[Kind]) -> Partition:
    return Partition(ranks=RANKS, tables=tuple(_place(kind, t) for t, kind in enumerate(table_kinds)))


def cases_of_two_ranks() -> Iterator[tuple[str, Model, RunConfig]]:
    """Every partition with every form, overlapped and not, where both sizes of bucket take turns, one of them with samples that no halving
    divides; every strategy, dtype and optimizer that tables of all kinds take; and every form with bf16 on the network."""
    even, uneven = small_model(24), small_model(25)
    where = partitions()
    without_columns = _partition(["row_wise", "replicated", "table_wise", "replicated", "row_wise"])  # which Adagrad refuses
    for (p, kind), (f, form), overlap in product(enumerate(where), enumerate(ALL_TO_ALL_FORMS), (True, False)):
        bucket, model = (("small", even), ("large", uneven))[(p + f + overlap) % 2]
        knobs = CommunicationKnobs(all_to_all=form, overlap=overlap, bucket_bytes=BUCKETS[bucket])
        yield f"{kind} {form} {'overlapped' if overlap else 'in turn'} {bucket} buckets", model, _config(where[kind], knobs)
    for dtype, optimizer in product(DTYPES, OPTIMIZERS):
        mixed = where["mixed"] if optimizer == "sgd" else without_columns
        model = uneven.changed(Changes(dtype=dtype, optimizer=optimizer))
        for form, strategy in zip(cycle(ALL_TO_ALL_FORMS), strategies(dtype, optimizer), strict=False):
            yield f"mixed {form} {dtype} {optimizer} {strategy}", model, _config(mixed, CommunicationKnobs(all_to_all=form), strategy)
    stochastic = even.changed(Changes(dtype="bf16", table_storage="stochastic"))
    for kind in ("mixed", "replicated_sparse"):
        yield f"{kind} stochastic", stochastic, _config(where[kind], CommunicationKnobs())
    for form in ALL_TO_ALL_FORMS:
        yield f"mixed {form} bf16 on the network", uneven, _config(where["mixed"], CommunicationKnobs(all_to_all=form, wire_dtype="bf16"))


def _config(
    partition: Partition | None, communication: CommunicationKnobs | None, strategy: str = "bucketed", threads: int = 1
) -> RunConfig:
    """Without huge pages: zeroing one takes longer than a step."""
    update = EmbeddingUpdateKnobs.model_validate({"strategy": strategy})
    operators = {"embedding_bag.update": update}
    return RunConfig(threads=threads, huge_pages=False, operators=operators, partition=partition, communication=communication)


@functools.cache
def batches(minibatch: int) -> list[Batch]:
    source = make_source(small_model(minibatch))
    return [source.batch(i) for i in range(STEPS)]


def digest(dlrm: DLRM, model: Model) -> str:
    """Twelve hex digits over the losses of the steps and what they leave in memory; every rank must call it, and rank 0 has the whole."""
    losses = [dlrm.step(batch) for batch in batches(model.minibatch)]
    bits = hashlib.sha256(struct.pack(f"<{STEPS}d", *losses))
    for values in (dlrm.state_dict(), dlrm.optimizer_state()):
        for name, value in sorted(values.items()):
            bits.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            bits.update(value.contiguous().numpy().tobytes())
    return bits.hexdigest()[:12]


def _digests(cases: Iterator[tuple[str, Model, RunConfig]], make: Callable[[Model, RunConfig], DLRM]) -> dict[str, str]:
    return {key: digest(make(model, config), model) for key, model, config in cases}


def _train_alone(folder: Path) -> None:
    (folder / "alone.json").write_text(json.dumps(_digests(cases_of_one_rank(), DLRM)))


def _train_rank(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=RANKS)
    digests = _digests(cases_of_two_ranks(), lambda model, config: DLRM(model, config, world=World(rank, RANKS)))
    dist.destroy_process_group()
    if rank == 0:
        (folder / "ranks.json").write_text(json.dumps(digests))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run_forked([functools.partial(_train_alone, folder), *(functools.partial(_train_rank, folder, rank) for rank in range(RANKS))])
