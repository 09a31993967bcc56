"""The DLRM's step as a schedule: the only place that knows which passes there are and in which order.

Bottom MLP, embedding bags, interaction (nothing where vectors are concatenated), top MLP, binary cross entropy; ReLU after every layer but
the last, which ends in a sigmoid. On one rank the weights step in the pass that computes their gradient. On several, tables lie where the
partition puts them and dense layers are on every rank: pooled rows travel while the bottom MLP goes forward; their gradients travel while
the weight gradients of the top MLP and the whole bottom MLP go backward; each bucket of dense gradients is reduced beside all that follows
it.

Source: arXiv 2005.04680, section IV; row-wise tables meet in partial sums as in arXiv 1909.04823.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from typing import Any

from autotune.config.interactions import CONCATENATION, DOT_WITH_DIAGONAL, INTERACTIONS, dot_width
from autotune.config.model import FLOAT_BYTES, Model
from autotune.config.partition import CommunicationKnobs, Partition
from autotune.data.popularity import popularity
from autotune.dlrm.sharding import parts_of_ranks, reduced_densely, replicated, whole_tables
from autotune.errors import InputError
from autotune.ops import all_reduce, all_to_all, embedding_bag, interaction, loss, optimizer
from autotune.ops.all_to_all import AllToAll, sample_bounds
from autotune.ops.base import Operator
from autotune.ops.embedding_bag import EmbeddingForward, EmbeddingUpdate, Source, TableLoad
from autotune.ops.layer import Activation
from autotune.ops.mlp import LayerBackwardData, LayerBackwardWeights, LayerForward, ReluMask
from autotune.ops.schedule import ROWS, Buffer, Lane, Pass, Schedule
from autotune.ops.sharded import Block, Collect, Place, ReplicaGradient, Select
from autotune.ops.shards import Part

Builder = Callable[[Model, Partition | None, int, CommunicationKnobs], Schedule]


def schedule(model: Model, partition: Partition | None = None, rank: int = 0, communication: CommunicationKnobs | None = None) -> Schedule:
    """One rank's step.

    Args:
        model: with the global minibatch.
        partition: where the tables lie; None is a single rank that owns all of them.
        rank: whose step it is.
        communication: how the ranks talk; None takes the default.

    Raises:
        InputError: fewer samples than ranks, or an interaction that no schedule is registered for.
    """
    check_samples(model, 1 if partition is None else partition.ranks)
    return _BUILDERS[model.interaction](model, partition, rank, communication or CommunicationKnobs())


def check_samples(model: Model, ranks: int) -> None:
    """Raises: InputError: fewer samples than ranks."""
    if model.minibatch < ranks:
        rule = "every rank needs a sample"
        raise InputError(f"{rule}, got a minibatch of {model.minibatch} for {ranks} ranks; raise --minibatch, or take fewer sockets")


def register(name: str, builder: Builder, top_input: Callable[[int, int], int] = dot_width) -> None:
    """Make models with ``interaction: name`` run the schedule that `builder` gives; `top_input` is the top MLP's input size by F and E."""
    INTERACTIONS[name] = top_input
    _BUILDERS[name] = builder


def layer_shapes(model: Model) -> Iterator[tuple[str, int, int, Activation]]:
    """(``bottom_mlp.0``, C, K, activation) of every layer, bottom first."""
    for name, sizes in (("bottom_mlp", model.bottom_mlp), ("top_mlp", model.top_sizes)):
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            last = name == "top_mlp" and i == len(sizes) - 2
            yield f"{name}.{i}", inputs, outputs, "sigmoid" if last else "relu"


def dlrm_schedule(model: Model, partition: Partition | None, rank: int, communication: CommunicationKnobs) -> Schedule:
    """The DLRM with dot interaction, or with its vectors concatenated."""
    if partition is None:
        return _one_rank(_Passes(model, model.minibatch, False))
    return _several_ranks(model, partition, rank, communication)


_BUILDERS: dict[str, Builder] = dict.fromkeys(INTERACTIONS, dlrm_schedule)


def _one_rank(build: _Passes) -> Schedule:
    model, parts = build.model, tuple(whole_tables(build.model))
    loads = table_loads(model, parts, model.minibatch)
    forward = [
        *build.forward("bottom"),
        *build.lookup(loads, (Source("owned", parts, "owned", "features"),), writes=(build.features,)),
        *build.interaction_forward(),
        *build.forward("top"),
    ]
    backward = [
        build.loss(),
        *build.backward("top"),
        *build.interaction_backward(),
        *build.update(loads, Source("owned", parts, "owned", "d_features"), build.d_features),
        build.mask(),
        *build.backward("bottom"),
    ]
    return Schedule((*forward, *backward), model, len(forward), (0, model.minibatch), model.minibatch)


def _several_ranks(model: Model, partition: Partition, rank: int, knobs: CommunicationKnobs) -> Schedule:
    bounds = sample_bounds(model.minibatch, partition.ranks)
    own, minibatch = (bounds[rank], bounds[rank + 1]), model.minibatch
    samples = own[1] - own[0]
    build = _Passes(model.model_copy(update={"minibatch": samples}), minibatch, True)
    rank_parts = parts_of_ranks(model, partition)
    owned, tables = rank_parts[rank], whole_tables(model)
    # Of replicated tables, the gradients of few rows are reduced densely; of others, pooled gradients travel.
    dense = tuple(tables[t] for t in replicated(partition) if reduced_densely(model, t))
    sparse = tuple(tables[t] for t in replicated(partition) if not reduced_densely(model, t))
    copies = (("sparse", sparse), ("dense", dense))
    replicas = tuple(Source(name, parts, f"{name}.own", f"pooled.{name}") for name, parts in copies if parts)
    pooled = tuple(_matrix(source.buffer, samples, _width(source.parts)) for source in replicas)

    slots = tuple(tuple(part.width for part in parts) for parts in rank_parts)
    back_slots = tuple((*widths, *(part.width for part in sparse)) for widths in slots)
    width = sum(slots[rank])
    sent = Buffer("exchange.forward.owned", FLOAT_BYTES * minibatch * width)
    arrived = Buffer("exchange.forward.blocks", FLOAT_BYTES * samples * sum(map(sum, slots)))
    collected = Buffer("exchange.backward.blocks", FLOAT_BYTES * samples * sum(map(sum, back_slots)))
    returned = Buffer("exchange.backward.owned", FLOAT_BYTES * minibatch * sum(back_slots[rank]))

    own_loads, sparse_loads = table_loads(model, owned, minibatch), table_loads(model, sparse, minibatch)
    replica_loads = table_loads(model, [*sparse, *dense], samples)
    choices = (
        *((("owned", "owned", None),) if owned else ()),
        *((("sparse.all", "sparse", None), ("sparse.own", "sparse", own)) if sparse else ()),
        *((("dense.own", "dense", own),) if dense else ()),
    )
    lookups = sum(load.lookups for load in (*own_loads, *sparse_loads, *replica_loads))
    placed = (
        *(Block(f"exchange.forward.from.{r}", parts) for r, parts in enumerate(rank_parts)),
        *(Block(source.buffer, source.parts) for source in replicas),
    )
    gradients = [Block(f"exchange.backward.from.{r}", (*parts, *sparse)) for r, parts in enumerate(rank_parts)]
    if dense:
        gradients.append(Block("pooled.dense", dense))
    there = AllToAll(all_to_all.FORWARD, "forward", bounds, slots, rank, knobs)
    back = AllToAll(all_to_all.BACKWARD, "backward", bounds, back_slots, rank, knobs)
    forward = [
        _pass(Select(Select.kind, choices, lookups, build.tables["index_bytes"])),
        *build.lookup(own_loads, (Source("owned", owned, "owned", sent.name),), writes=(sent,)),
        _pass(there, (sent,), (arrived,), "network"),
        *build.forward("bottom"),
        *build.lookup(replica_loads, replicas, writes=pooled),
        _pass(Place(Place.kind, placed, samples), (arrived, *pooled), (build.features,)),
        *build.interaction_forward(),
        *build.forward("top"),
    ]
    backward = [
        build.loss(),
        *build.backward_data("top"),
        *build.interaction_backward(),
        _pass(Collect(Collect.kind, tuple(gradients), samples), (build.d_features,), (collected, *(pooled[-1:] if dense else ()))),
        _pass(back, (collected,), (returned,), "network"),
        *([build.replica_gradient(table_loads(model, dense, samples), dense, pooled[-1])] if dense else []),
        *build.backward_weights("top"),
        build.mask(),
        *build.backward("bottom"),
        *build.update(own_loads, Source("owned", owned, "owned", returned.name), returned),
        *build.update(sparse_loads, Source("sparse", sparse, "sparse.all", returned.name, width), returned, repeatable=True),
    ]
    passes = (*forward, *_with_reductions(backward, build, dense, knobs, partition.ranks))
    return Schedule(passes, build.model, len(forward), own, minibatch, knobs.overlap)


def _with_reductions(
    backward: Sequence[Pass], build: _Passes, dense: Sequence[Part], knobs: CommunicationKnobs, ranks: int
) -> Iterator[Pass]:
    """The backward passes, each bucket of gradients reduced behind the pass that writes its last one, and the optimizer at the end.

    The loss shares the first bucket: it is ready long before, and goes out with the first gradients.
    """
    gradients: list[all_reduce.Gradient] = [("loss", (1,))]
    gradients += [(f"table.{part.table}", (part.rows[1] - part.rows[0], part.width)) for part in dense]
    for layer in (*reversed(build.layers("top")), *reversed(build.layers("bottom"))):
        gradients += [(f"{layer.name}.w", (layer.outputs, layer.inputs)), (f"{layer.name}.b", (layer.outputs,))]
    waiting = {number: dict(bucket) for number, bucket in enumerate(all_reduce.buckets(gradients, knobs.bucket_bytes))}
    unwritten = {name for name, _ in gradients}
    reduced = []
    for each in backward:
        yield each
        unwritten -= {buffer.name for buffer in each.writes}
        for number in [number for number, bucket in waiting.items() if not bucket.keys() & unwritten]:
            bucket = waiting.pop(number)
            operator = all_reduce.AllReduce(all_reduce.KEY, number, tuple(bucket.items()), ranks)
            reduced.append(Buffer(f"reduced.{number}", operator.size_bytes))
            yield _pass(operator, tuple(_gradient(name, *shape) for name, shape in bucket.items()), reduced[-1:], "network")
    layers = tuple(layer.name for layer in (*build.layers("bottom"), *build.layers("top")))
    copied = sum((part.rows[1] - part.rows[0]) * part.width for part in dense)
    held = ("dense" if dense else "", copied, build.model.weight_bytes)
    step = optimizer.DenseOptimizer(optimizer.KEY, layers, build.model.dense_parameters, *held)
    yield _pass(step, reduced)


def _pass(operator: Operator, reads: Sequence[Buffer] = (), writes: Sequence[Buffer] = (), lane: Lane = "compute") -> Pass:
    return Pass(operator.key, operator, lane, tuple(reads), tuple(writes))


def _matrix(name: str, rows: int, columns: int) -> Buffer:
    return Buffer(name, FLOAT_BYTES * rows * columns, (rows, columns))


def _gradient(name: str, *shape: int) -> Buffer:
    """What an all-reduce carries: a gradient or the loss. It lies in the bucket of the all-reduce where there are several ranks."""
    return Buffer(name, FLOAT_BYTES * math.prod(shape))


def _width(parts: Sequence[Part]) -> int:
    return sum(part.width for part in parts)


def table_loads(model: Model, parts: Sequence[Part], samples: int) -> tuple[TableLoad, ...]:
    """What a pass over `parts` walks for `samples` samples: expected look-ups, distinct rows and bytes of each part."""
    element, loads = 2 if model.dtype == "bf16" else FLOAT_BYTES, []
    for part in parts:
        table, rows = model.tables[part.table], part.rows[1] - part.rows[0]
        share = rows / table.rows
        loads.append(TableLoad(rows, part.width * element, samples * table.pooling * share, samples, popularity(model, part.table), share))
    return tuple(loads)


@dataclass(frozen=True)
class _Layer:
    """One fully connected layer."""

    name: str
    inputs: int
    outputs: int
    activation: Activation
    below: str
    """Names of the buffers that it reads and writes."""
    above: str
    lowest: bool
    """Whether it is the first of its MLP."""


def table_options(model: Model) -> dict[str, Any]:
    """What passes over the model's tables take beside their loads, by the name of the field."""
    return {
        "dtype": model.dtype,
        "storage": model.table_storage,
        "optimizer": model.optimizer,
        "index_bytes": 4 if model.index_dtype == "int32" else 8,
        "uniform": model.data.distribution == "uniform",
    }


class _Passes:
    """Makes the passes of one rank.

    Args:
        model: with the minibatch of the rank.
        global_minibatch: of all ranks.
        reduced: whether gradients of layers are summed over ranks before the weights step.
    """

    def __init__(self, model: Model, global_minibatch: int, reduced: bool) -> None:
        self.model, self.global_minibatch, self.reduced = model, global_minibatch, reduced
        self.samples = model.minibatch
        n, f, e = self.samples, model.num_features, model.embedding_dim
        self.tables = table_options(model)
        # Vectors side by side are the top MLP's input, so that each is written where the top MLP reads it, and no pass concatenates.
        self.concatenated = model.interaction == CONCATENATION
        roots = [_matrix(name, n, f * e) if self.concatenated else None for name in ("top.0", "d_top.0")]
        vectors, d_vectors = (
            Buffer(name, FLOAT_BYTES * n * f * e, (n, f, e), root) for name, root in zip(("vectors", "d_vectors"), roots, strict=True)
        )
        self.features, self.d_features = (
            Buffer(f"{prefix}features", FLOAT_BYTES * n * (f - 1) * e, (n, (f - 1) * e), root, e)
            for prefix, root in (("", vectors), ("d_", d_vectors))
        )
        self.dense, self.d_dense = (
            Buffer(f"{prefix}dense_vector", FLOAT_BYTES * n * e, (n, e), root) for prefix, root in (("", vectors), ("d_", d_vectors))
        )
        self._known: dict[str, tuple[Buffer, ...]] = {buffer.name: (buffer,) for buffer in (self.dense, self.d_dense)}
        if self.concatenated:
            self._known |= {"top.0": (self.features, self.dense), "d_top.0": (self.d_features, self.d_dense)}

    def layers(self, side: str) -> list[_Layer]:
        """Layers of the bottom or the top MLP, the lowest first."""
        shapes = [shape for shape in layer_shapes(self.model) if shape[0].startswith(side)]
        buffers = ["input" if side == "bottom" else "top.0", *(f"{side}.{i + 1}" for i in range(len(shapes)))]
        if side == "bottom":
            buffers[-1] = self.dense.name
        return [_Layer(*shape, buffers[i], buffers[i + 1], i == 0) for i, shape in enumerate(shapes)]

    def _activation(self, name: str, columns: int) -> tuple[Buffer, ...]:
        """An activation or its gradient, [N, columns], or the buffers side by side in it; the input belongs to the batch."""
        made = _matrix(name, self.samples, columns)
        return self._known.get(name) or (replace(made, shape=()) if name == "input" else made,)

    def _layer_pass(self, layer: _Layer, kind: type[LayerForward | LayerBackwardData | LayerBackwardWeights]) -> Pass:
        weights, masked = layer.inputs * layer.outputs, kind is LayerBackwardData and not layer.lowest
        packed_bytes = weights * (2 if self.model.dtype == "bf16" else FLOAT_BYTES)
        x, y = self._activation(layer.below, layer.inputs), self._activation(layer.above, layer.outputs)
        dx, dy = self._activation(f"d_{layer.below}", layer.inputs), self._activation(f"d_{layer.above}", layer.outputs)
        forward, backward = Buffer(f"{layer.name}.packed_forward", packed_bytes), Buffer(f"{layer.name}.packed_backward", packed_bytes)
        stepped = (
            (_gradient(f"{layer.name}.w", layer.outputs, layer.inputs), _gradient(f"{layer.name}.b", layer.outputs))
            if self.reduced
            else (Buffer(f"{layer.name}.weight", FLOAT_BYTES * weights), forward, backward)
        )
        reads, writes = {
            LayerForward: ((*x, forward), y),
            LayerBackwardData: ((*dy, backward, *(x if masked else ())), dx),
            LayerBackwardWeights: ((*dy, *x), stepped),
        }[kind]
        operator = kind(
            f"{layer.name}.{kind.direction}", layer.name, self.samples, layer.inputs, layer.outputs, layer.activation, masked,
            self.model.dtype, self.model.optimizer, layer.below, layer.above, self.reduced,
        )  # fmt: skip
        return _pass(operator, reads, writes)

    def forward(self, side: str) -> list[Pass]:
        return [self._layer_pass(layer, LayerForward) for layer in self.layers(side)]

    def backward_data(self, side: str) -> list[Pass]:
        """From the last layer on; below the first bottom layer nothing learns."""
        layers = [layer for layer in reversed(self.layers(side)) if side == "top" or not layer.lowest]
        return [self._layer_pass(layer, LayerBackwardData) for layer in layers]

    def backward_weights(self, side: str) -> list[Pass]:
        return [self._layer_pass(layer, LayerBackwardWeights) for layer in reversed(self.layers(side))]

    def backward(self, side: str) -> list[Pass]:
        """Of every layer backward-data, then backward-weights, which changes the weights that the former reads."""
        data, weights = self.backward_data(side), self.backward_weights(side)
        return [each for pair in zip_longest(data, weights) for each in pair if each is not None]

    def lookup(self, loads: tuple[TableLoad, ...], sources: tuple[Source, ...], writes: Sequence[Buffer]) -> list[Pass]:
        """None where there is no table."""
        operator = EmbeddingForward(embedding_bag.FORWARD, loads, sources, **self.tables)
        return [_pass(operator, self._rows(operator), writes)] if loads else []

    def update(self, loads: tuple[TableLoad, ...], source: Source, gradients: Buffer, repeatable: bool = False) -> list[Pass]:
        """None where there is no table."""
        operator = EmbeddingUpdate(embedding_bag.UPDATE, loads, (source,), **self.tables, repeatable=repeatable)
        indices, rows = self._rows(operator)
        return [_pass(operator, (indices, rows, gradients), (rows,))] if loads else []

    def replica_gradient(self, loads: tuple[TableLoad, ...], parts: tuple[Part, ...], pooled: Buffer) -> Pass:
        source = Source("dense", parts, "dense.own", pooled.name)
        operator = ReplicaGradient(embedding_bag.UPDATE, loads, (source,), **self.tables, repeatable=True)
        tables = [_gradient(f"table.{part.table}", part.rows[1] - part.rows[0], part.width) for part in parts]
        return _pass(operator, (*self._rows(operator), pooled), tables)

    def _rows(self, operator: EmbeddingForward | EmbeddingUpdate) -> tuple[Buffer, Buffer]:
        return Buffer("indices", operator.indices_bytes), Buffer(ROWS, operator.unique_bytes)

    def _interaction(self, kind: type[interaction.InteractionForward | interaction.InteractionBackward]) -> interaction.Interaction:
        diagonal = self.model.interaction == DOT_WITH_DIAGONAL
        return kind(f"interaction.{kind.direction}", self.samples, self.model.num_features, self.model.embedding_dim, diagonal)

    def interaction_forward(self) -> list[Pass]:
        """None where vectors are concatenated."""
        operator, vectors = self._interaction(interaction.InteractionForward), (self.features, self.dense)
        return [] if self.concatenated else [_pass(operator, vectors, self._activation("top.0", self.model.top_input))]

    def interaction_backward(self) -> list[Pass]:
        """None where vectors are concatenated."""
        operator = self._interaction(interaction.InteractionBackward)
        reads = (self.features, self.dense, *self._activation("d_top.0", self.model.top_input))
        return [] if self.concatenated else [_pass(operator, reads, (self.d_features, self.d_dense))]

    def loss(self) -> Pass:
        output = self.layers("top")[-1].above
        operator = loss.Loss(loss.KEY, self.samples, self.global_minibatch, output)
        return _pass(operator, self._activation(output, 1), (*self._activation(f"d_{output}", 1), _gradient("loss", 1)))

    def mask(self) -> Pass:
        """The gradient that comes to the dense vector lies behind the last ReLU of the bottom MLP."""
        operator = ReluMask("bottom_mlp.mask", self.dense.name, self.samples, self.model.embedding_dim)
        return _pass(operator, (self.d_dense, self.dense), (self.d_dense,))
