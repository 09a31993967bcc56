"""The DLRM's step as a schedule: the only place that knows which passes there are and in which order.

Bottom MLP, embedding bags, interaction, top MLP, binary cross entropy; ReLU after every layer but the last, which ends in a sigmoid. On one
rank the weights step in the pass that computes their gradient. On several, tables lie where the partition puts them and dense layers are on
every rank: pooled rows travel while the bottom MLP goes forward; their gradients travel while the weight gradients of the top MLP and the
whole bottom MLP go backward; each bucket of dense gradients is reduced beside all that follows it.

Source: arXiv 2005.04680, section IV; row-wise tables meet in partial sums as in arXiv 1909.04823.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from autotune.config.model import FLOAT_BYTES, INTERACTIONS, Model
from autotune.config.partition import CommunicationKnobs, Partition
from autotune.data.popularity import popularity
from autotune.dlrm.sharding import parts_of_ranks, reduced_densely, replicated, whole_tables
from autotune.errors import InputError
from autotune.ops import all_reduce, all_to_all, embedding_bag, interaction, loss, optimizer
from autotune.ops.all_to_all import AllToAll, sample_bounds
from autotune.ops.embedding_bag import EmbeddingForward, EmbeddingUpdate, Source, TableLoad
from autotune.ops.layer import Activation
from autotune.ops.mlp import LayerBackwardData, LayerBackwardWeights, LayerForward, ReluMask
from autotune.ops.schedule import ROWS, Buffer, Pass, Schedule
from autotune.ops.sharded import Block, Collect, Place, ReplicaGradient, Select
from autotune.ops.shards import Part

Builder = Callable[[Model, Partition | None, int, CommunicationKnobs], Schedule]


def schedule(
    model: Model, partition: Partition | None = None, rank: int = 0, communication: CommunicationKnobs | None = None
) -> Schedule:
    """One rank's step.

    Args:
        model: with the global minibatch.
        partition: where the tables lie; None is a single rank that owns all of them.
        rank: whose step it is.
        communication: how the ranks talk; None takes the default.

    Raises:
        InputError: fewer samples than ranks, or an interaction that no schedule is registered for.
    """
    if partition is not None and model.minibatch < partition.ranks:
        rule = "every rank needs a sample"
        raise InputError(f"{rule}, got a minibatch of {model.minibatch} for {partition.ranks} ranks; raise --minibatch")
    return _BUILDERS[model.interaction](model, partition, rank, communication or CommunicationKnobs())


def register(name: str, builder: Builder) -> None:
    """Make models with ``interaction: name`` run the schedule that `builder` gives."""
    INTERACTIONS[name] = None
    _BUILDERS[name] = builder


def layer_shapes(model: Model) -> Iterator[tuple[str, int, int, Activation]]:
    """(``bottom_mlp.0``, C, K, activation) of every layer, bottom first."""
    for name, sizes in (("bottom_mlp", model.bottom_mlp), ("top_mlp", model.top_sizes)):
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            last = name == "top_mlp" and i == len(sizes) - 2
            yield f"{name}.{i}", inputs, outputs, "sigmoid" if last else "relu"


def dot_schedule(model: Model, partition: Partition | None, rank: int, communication: CommunicationKnobs) -> Schedule:
    """The DLRM with dot interaction."""
    if partition is None:
        return _one_rank(_Passes(model, model.minibatch, False))
    return _several_ranks(model, partition, rank, communication)


_BUILDERS: dict[str, Builder] = {"dot": dot_schedule}


def _one_rank(build: _Passes) -> Schedule:
    model, parts = build.model, whole_tables(build.model)
    source = Source("owned", tuple(parts), "owned", "features")
    d_source = Source("owned", tuple(parts), "owned", "d_features")
    loads = table_loads(model, parts, model.minibatch)
    forward = [
        *build.forward("bottom"),
        build.lookup(loads, (source,), writes=(build.features,)),
        build.interaction_forward(),
        *build.forward("top"),
    ]
    backward = [
        build.loss(),
        *build.backward("top"),
        build.interaction_backward(),
        build.update(loads, (d_source,), reads=(build.d_features,)),
        build.mask(),
        *build.backward("bottom"),
    ]
    return Schedule((*forward, *backward), model, len(forward), (0, model.minibatch), model.minibatch)


def _several_ranks(model: Model, partition: Partition, rank: int, knobs: CommunicationKnobs) -> Schedule:
    bounds = sample_bounds(model.minibatch, partition.ranks)
    own, of_all = (bounds[rank], bounds[rank + 1]), model.minibatch
    samples = own[1] - own[0]
    build = _Passes(model.model_copy(update={"minibatch": samples}), of_all, True)
    shards = _Shards(model, partition)
    slots = tuple(tuple(part.width for part in parts) for parts in shards.of_ranks)
    back_slots = tuple((*widths, *(part.width for part in shards.sparse)) for widths in slots)
    width = sum(slots[rank])
    sent = Buffer("exchange.forward.owned", FLOAT_BYTES * of_all * width)
    arrived = Buffer("exchange.forward.blocks", FLOAT_BYTES * samples * sum(map(sum, slots)))
    collected = Buffer("exchange.backward.blocks", FLOAT_BYTES * samples * sum(map(sum, back_slots)))
    returned = Buffer("exchange.backward.owned", FLOAT_BYTES * of_all * sum(back_slots[rank]))
    pooled = {
        name: Buffer(f"pooled.{name}", FLOAT_BYTES * samples * wide, (samples, wide))
        for name, parts in (("sparse", shards.sparse), ("dense", shards.dense))
        if (wide := sum(part.width for part in parts))
    }
    replicas = tuple(
        Source(name, tuple(parts), f"{name}.own", f"pooled.{name}")
        for name, parts in (("sparse", shards.sparse), ("dense", shards.dense))
        if parts
    )
    owned = tuple(shards.of_ranks[rank])
    own_loads, all_sparse = table_loads(model, owned, of_all), table_loads(model, shards.sparse, of_all)
    replica_loads = table_loads(model, [*shards.sparse, *shards.dense], samples)
    dense_loads = table_loads(model, shards.dense, samples)
    transfer: dict[str, Any] = {"bounds": bounds, "rank": rank, "knobs": knobs}

    select = Select(
        "embedding_bag.select",
        (
            *((("owned", "owned", None),) if owned else ()),
            *((("sparse.all", "sparse", None), ("sparse.own", "sparse", own)) if shards.sparse else ()),
            *((("dense.own", "dense", own),) if shards.dense else ()),
        ),
        sum(load.lookups for load in (*own_loads, *all_sparse, *replica_loads)),
        build.tables["index_bytes"],
    )
    placed = (
        *(Block(f"exchange.forward.from.{r}", tuple(parts)) for r, parts in enumerate(shards.of_ranks)),
        *(Block(source.buffer, source.parts) for source in replicas),
    )
    blocks = tuple(Block(f"exchange.backward.from.{r}", (*parts, *shards.sparse)) for r, parts in enumerate(shards.of_ranks))
    dense_block = (Block("pooled.dense", tuple(shards.dense)),) if shards.dense else ()
    forward = [
        Pass(select.key, select),
        *([build.lookup(own_loads, (Source("owned", owned, "owned", sent.name),), writes=(sent,))] if owned else []),
        Pass(
            all_to_all.FORWARD, AllToAll(all_to_all.FORWARD, "forward", slots=slots, **transfer), "network", (sent,), (arrived,)
        ),
        *build.forward("bottom"),
        *([build.lookup(replica_loads, replicas, writes=tuple(pooled.values()))] if replicas else []),
        Pass(
            "embedding_bag.place", Place("embedding_bag.place", placed, samples), "compute", (arrived, *pooled.values()), (build.features,)
        ),
        build.interaction_forward(),
        *build.forward("top"),
    ]  # fmt: skip
    backward = [
        build.loss(),
        *build.backward_data("top"),
        build.interaction_backward(),
        Pass(
            "embedding_bag.collect", Collect("embedding_bag.collect", (*blocks, *dense_block), samples), "compute",
            (build.d_features,), (collected, *([pooled["dense"]] if shards.dense else [])),
        ),
        Pass(
            all_to_all.BACKWARD, AllToAll(all_to_all.BACKWARD, "backward", slots=back_slots, **transfer), "network",
            (collected,), (returned,),
        ),
        *([build.replica_gradient(dense_loads, shards.dense, pooled["dense"])] if shards.dense else []),
        *build.backward_weights("top"),
        build.mask(),
        *build.backward("bottom"),
        *([build.update(own_loads, (Source("owned", owned, "owned", "exchange.backward.owned", 0),), reads=(returned,))] if owned else []),
        *(
            [build.update(
                all_sparse, (Source("sparse", tuple(shards.sparse), "sparse.all", "exchange.backward.owned", width),),
                reads=(returned,), repeatable=True,
            )]
            if shards.sparse
            else []
        ),
    ]  # fmt: skip
    passes = [*forward, *_with_reductions(backward, build, shards, knobs, partition.ranks)]
    return Schedule(tuple(passes), build.model, len(forward), own, of_all, knobs.overlap)


@dataclass(frozen=True)
class _Shards:
    """Parts by where they lie."""

    model: Model
    partition: Partition

    @cached_property
    def of_ranks(self) -> list[list[Part]]:
        return parts_of_ranks(self.model, self.partition)

    @property
    def _copies(self) -> list[Part]:
        return [Part(t, (0, self.model.tables[t].rows), (0, self.model.tables[t].dim)) for t in replicated(self.partition)]

    @property
    def dense(self) -> list[Part]:
        """Replicated tables whose gradients are reduced as dense rows."""
        return [part for part in self._copies if reduced_densely(self.model, part.table)]

    @property
    def sparse(self) -> list[Part]:
        """Replicated tables whose pooled gradients travel."""
        return [part for part in self._copies if not reduced_densely(self.model, part.table)]


def _with_reductions(
    backward: Sequence[Pass], build: _Passes, shards: _Shards, knobs: CommunicationKnobs, ranks: int
) -> Iterator[Pass]:
    """The backward passes, each bucket of gradients reduced behind the pass that writes its last one, and the optimizer at the end.

    The loss shares the first bucket: it is ready long before, and goes out with the first gradients.
    """
    gradients: list[all_reduce.Gradient] = [("loss", (1,))]
    gradients += [(f"table.{part.table}", (part.rows[1] - part.rows[0], part.width)) for part in shards.dense]
    for layer in (*reversed(build.layers("top")), *reversed(build.layers("bottom"))):
        gradients += [(f"{layer.name}.w", (layer.outputs, layer.inputs)), (f"{layer.name}.b", (layer.outputs,))]
    waiting = {
        number: ({name for name, _ in bucket}, bucket) for number, bucket in enumerate(all_reduce.buckets(gradients, knobs.bucket_bytes))
    }
    reduced = []
    for each in backward:
        yield each
        written = {buffer.name for buffer in each.writes}
        for number in [number for number, (names, _) in waiting.items() if names & written]:
            names, bucket = waiting[number]
            names -= written
            if not names:
                del waiting[number]
                operator = all_reduce.AllReduce(all_reduce.KEY, number, bucket, ranks)
                views = tuple(Buffer(name, FLOAT_BYTES * all_reduce.padded_elements(shape)) for name, shape in bucket)
                reduced.append(Buffer(f"reduced.{number}", operator.size_bytes))
                yield Pass(all_reduce.KEY, operator, "network", views, (reduced[-1],))
    layers = tuple(layer.name for layer in (*build.layers("bottom"), *build.layers("top")))
    copied = sum((part.rows[1] - part.rows[0]) * part.width for part in shards.dense)
    step = optimizer.DenseOptimizer(optimizer.KEY, layers, build.model.dense_parameters, "dense" if shards.dense else "", copied)
    yield Pass(optimizer.KEY, step, reads=tuple(reduced))


def table_loads(model: Model, parts: Sequence[Part], samples: int) -> tuple[TableLoad, ...]:
    """What a pass over `parts` walks for `samples` samples: expected look-ups, distinct rows and bytes of each part."""
    element = 2 if model.dtype == "bf16" else FLOAT_BYTES
    loads = []
    for part in parts:
        table, rows = model.tables[part.table], part.rows[1] - part.rows[0]
        share = rows / table.rows
        loads.append(
            TableLoad(rows, part.width * element, samples * table.pooling * share, samples, popularity(model, part.table), share)
        )
    return tuple(loads)


def table_options(model: Model) -> dict[str, Any]:
    """What passes over the model's tables take beside their loads, by the name of the field."""
    return {
        "dtype": model.dtype,
        "optimizer": model.optimizer,
        "index_bytes": 4 if model.index_dtype == "int32" else 8,
        "uniform": model.data.distribution == "uniform",
    }


@dataclass(frozen=True)
class _Layer:
    """One fully connected layer."""

    name: str
    number: int
    inputs: int
    outputs: int
    activation: Activation
    below: str
    """Names of the buffers that it reads and writes."""
    above: str


class _Passes:
    """Makes the passes of one rank.

    Args:
        model: with the minibatch of the rank.
        of_samples: the global minibatch.
        reduced: whether gradients of layers are summed over ranks before the weights step.
    """

    def __init__(self, model: Model, of_samples: int, reduced: bool) -> None:
        self.model, self.of_samples, self.reduced = model, of_samples, reduced
        self.samples = model.minibatch
        n, f, e = self.samples, model.num_features, model.embedding_dim
        self.tables = table_options(model)
        vectors, d_vectors = (Buffer(name, FLOAT_BYTES * n * f * e, (n, f, e)) for name in ("vectors", "d_vectors"))
        self.features, self.d_features = (
            Buffer(f"{prefix}features", FLOAT_BYTES * n * (f - 1) * e, (n, (f - 1) * e), root, e)
            for prefix, root in (("", vectors), ("d_", d_vectors))
        )
        self.dense, self.d_dense = (
            Buffer(f"{prefix}dense_vector", FLOAT_BYTES * n * e, (n, e), root) for prefix, root in (("", vectors), ("d_", d_vectors))
        )
        self._known = {buffer.name: buffer for buffer in (self.dense, self.d_dense)}

    def layers(self, side: str) -> list[_Layer]:
        """Layers of the bottom or the top MLP, the lowest first."""
        name, sizes = f"{side}_mlp", self.model.bottom_mlp if side == "bottom" else self.model.top_sizes
        shapes = [(layer, c, k, act) for layer, c, k, act in layer_shapes(self.model) if layer.rpartition(".")[0] == name]
        above = [f"{side}.{i + 1}" for i in range(len(sizes) - 1)]
        below = ["input" if side == "bottom" else "top.0", *above[:-1]]
        if side == "bottom":
            above[-1] = self.dense.name
        return [_Layer(layer, i, c, k, act, below[i], above[i]) for i, (layer, c, k, act) in enumerate(shapes)]

    def _matrix(self, name: str, columns: int) -> Buffer:
        """An activation or its gradient, [N, columns]; the input belongs to the batch."""
        shape = () if name == "input" else (self.samples, columns)
        return self._known.get(name) or Buffer(name, FLOAT_BYTES * self.samples * columns, shape)

    def _layer_pass(self, layer: _Layer, kind: type[LayerForward | LayerBackwardData | LayerBackwardWeights]) -> Pass:
        weight, masked = layer.inputs * layer.outputs, kind is LayerBackwardData and layer.number > 0
        packed_bytes = weight * (2 if self.model.dtype == "bf16" else FLOAT_BYTES)
        x, y = self._matrix(layer.below, layer.inputs), self._matrix(layer.above, layer.outputs)
        dx, dy = self._matrix(f"d_{layer.below}", layer.inputs), self._matrix(f"d_{layer.above}", layer.outputs)
        forward, backward = Buffer(f"{layer.name}.packed_forward", packed_bytes), Buffer(f"{layer.name}.packed_backward", packed_bytes)
        stepped = (
            (Buffer(f"{layer.name}.w", FLOAT_BYTES * weight), Buffer(f"{layer.name}.b", FLOAT_BYTES * layer.outputs))
            if self.reduced
            else (Buffer(f"{layer.name}.weight", FLOAT_BYTES * weight), forward, backward)
        )
        reads, writes = {
            LayerForward: ((x, forward), (y,)),
            LayerBackwardData: ((dy, backward, *((x,) if masked else ())), (dx,)),
            LayerBackwardWeights: ((dy, x), stepped),
        }[kind]
        operator = kind(
            f"{layer.name}.{kind.direction}", layer.name, self.samples, layer.inputs, layer.outputs, layer.activation, masked,
            self.model.dtype, self.model.optimizer, layer.below, layer.above, self.reduced,
        )  # fmt: skip
        return Pass(operator.key, operator, reads=reads, writes=writes)

    def forward(self, side: str) -> list[Pass]:
        return [self._layer_pass(layer, LayerForward) for layer in self.layers(side)]

    def backward_data(self, side: str) -> list[Pass]:
        """From the last layer on; below the first bottom layer nothing learns."""
        return [self._layer_pass(layer, LayerBackwardData) for layer in reversed(self.layers(side)) if side == "top" or layer.number]

    def backward_weights(self, side: str) -> list[Pass]:
        return [self._layer_pass(layer, LayerBackwardWeights) for layer in reversed(self.layers(side))]

    def backward(self, side: str) -> list[Pass]:
        """Of every layer backward-data, then backward-weights, which changes the weights that the former reads."""
        data = {each.operator.layer: each for each in self.backward_data(side)}  # type: ignore[attr-defined]
        pairs = []
        for weights in self.backward_weights(side):
            layer = weights.operator.layer  # type: ignore[attr-defined]
            pairs += [*([data[layer]] if layer in data else []), weights]
        return pairs

    def lookup(self, loads: tuple[TableLoad, ...], sources: tuple[Source, ...], writes: tuple[Buffer, ...]) -> Pass:
        operator = EmbeddingForward(embedding_bag.FORWARD, loads, sources, **self.tables)
        return Pass(operator.key, operator, reads=self._rows(operator), writes=writes)

    def update(
        self, loads: tuple[TableLoad, ...], sources: tuple[Source, ...], reads: tuple[Buffer, ...], repeatable: bool = False
    ) -> Pass:
        operator = EmbeddingUpdate(embedding_bag.UPDATE, loads, sources, **self.tables, repeatable=repeatable)
        indices, rows = self._rows(operator)
        return Pass(operator.key, operator, reads=(indices, rows, *reads), writes=(rows,))

    def replica_gradient(self, loads: tuple[TableLoad, ...], parts: Sequence[Part], pooled: Buffer) -> Pass:
        source = Source("dense", tuple(parts), "dense.own", pooled.name)
        operator = ReplicaGradient(embedding_bag.UPDATE, loads, (source,), **self.tables, repeatable=True)
        tables = tuple(Buffer(f"table.{part.table}", FLOAT_BYTES * (part.rows[1] - part.rows[0]) * part.width) for part in parts)
        return Pass(operator.key, operator, reads=(*self._rows(operator), pooled), writes=tables)

    def _rows(self, operator: EmbeddingForward | EmbeddingUpdate) -> tuple[Buffer, Buffer]:
        return Buffer("indices", operator.indices_bytes), Buffer(ROWS, operator.unique_bytes)

    def _interaction(self, kind: type[interaction.InteractionForward | interaction.InteractionBackward]) -> interaction.Interaction:
        return kind(f"interaction.{kind.direction}", self.samples, self.model.num_features, self.model.embedding_dim)

    def interaction_forward(self) -> Pass:
        operator = self._interaction(interaction.InteractionForward)
        return Pass(operator.key, operator, reads=(self.features, self.dense), writes=(self._matrix("top.0", self.model.top_input),))

    def interaction_backward(self) -> Pass:
        operator = self._interaction(interaction.InteractionBackward)
        reads = (self.features, self.dense, self._matrix("d_top.0", self.model.top_input))
        return Pass(operator.key, operator, reads=reads, writes=(self.d_features, self.d_dense))

    def loss(self) -> Pass:
        output = self.layers("top")[-1].above
        operator = loss.Loss(loss.KEY, self.samples, self.of_samples, output)
        return Pass(operator.key, operator, reads=(self._matrix(output, 1),), writes=(self._matrix(f"d_{output}", 1), Buffer("loss", 4.0)))

    def mask(self) -> Pass:
        """The gradient that the interaction gives the dense vector lies behind the last ReLU of the bottom MLP."""
        operator = ReluMask("bottom_mlp.mask", self.dense.name, self.samples, self.model.embedding_dim)
        return Pass(operator.key, operator, reads=(self.d_dense, self.dense), writes=(self.d_dense,))
