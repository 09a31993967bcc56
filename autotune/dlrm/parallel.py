"""The DLRM on several ranks: tables where a partition puts them, dense layers on every rank, an all-to-all between the two.

Every rank reads the same global batch and works on its slice of the samples; the gradient is that of the mean loss over the global
batch, so that a step equals the single-process step up to the order of additions. The training step is driven by hand, so the dense
gradients are reduced in buckets of our own instead of by DistributedDataParallel, which hooks into an autograd that is not there.

Overlap: pooled rows travel while the bottom MLP goes forward; their gradients travel while the weight gradients of the top MLP and the
whole bottom MLP go backward; each bucket of dense gradients is reduced beside all that follows it.

Source: arXiv 2005.04680, section IV; row-wise tables meet in partial sums as in arXiv 1909.04823.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from autotune.config.knobs import EmbeddingUpdateKnobs, RunConfig
from autotune.config.model import Model
from autotune.config.partition import CommunicationKnobs
from autotune.config.profile import Topology
from autotune.data.batches import Batch, BatchSource
from autotune.dlrm.activity import busy
from autotune.dlrm.alone import TableAlone, tables_alone
from autotune.dlrm.connection import LOSS, Connection
from autotune.dlrm.model import _ROTATE_BATCHES, DLRM, _Buffers
from autotune.dlrm.parallel_operators import Fixed, shard_passes
from autotune.dlrm.sharding import Part, Shard, check_partition, parts_of, replicated
from autotune.errors import InputError
from autotune.ops import all_reduce, all_to_all, embedding_bag, loss
from autotune.ops.all_to_all import sample_bounds
from autotune.ops.base import Operator, Work
from autotune.ops.embedding_bag import EmbeddingBags, Lookups

SELECT = "embedding_bag.select"
OPTIMIZER = "optimizer"
TALKS = (all_to_all.FORWARD, all_to_all.BACKWARD, all_reduce.KEY)
"""Passes that wait for other ranks."""
_KEPT_CONNECTIONS = 3
"""Two that are compared, and one to go back to."""


@dataclass(frozen=True)
class _Selected:
    """The look-ups of one batch that this rank needs."""

    owned: list[Lookups]
    """Of the parts it owns, for all samples."""
    all_sparse: list[Lookups]
    """Of the replicated tables whose gradients travel sparsely, for all samples."""
    own_sparse: list[Lookups]
    """The same for its own samples."""
    own_dense: list[Lookups]
    """Of the replicated tables whose gradients are reduced densely, for its own samples."""


def _gather_columns(d_features: torch.Tensor, parts: Sequence[Part], block: torch.Tensor) -> None:
    """The gradients of `parts` side by side: d_features fp32 [n, F, E] -> block fp32 [n, width]."""
    column = 0
    for part in parts:
        block[:, column : column + part.width].copy_(d_features[:, 1 + part.table, slice(*part.columns)])
        column += part.width


def _repeatable(knobs: EmbeddingUpdateKnobs) -> EmbeddingUpdateKnobs:
    """Copies of a table stay equal only where additions have a fixed order."""
    return knobs.model_copy(update={"strategy": "bucketed"}) if knobs.strategy == "atomic" else knobs


class ParallelDLRM(DLRM):
    """One rank's share of a model. torch.distributed must be initialised; every rank makes it with the same arguments.

    Args:
        model: with the global minibatch.
        config: knobs of this rank's operators, with the partition; passes it does not name take the defaults for its share of the samples.
        seed: of the initial weights; None takes the model's.
        machine: this rank's cores.
        place_network: called with the number of cores that are left to the network's threads.

    Raises:
        InputError: the partition is missing, for other tables or another number of ranks, or there are fewer samples than ranks.
        MachineError: the memory cannot be had.
    """

    def __init__(
        self,
        model: Model,
        config: RunConfig,
        seed: int | None = None,
        *,
        machine: Topology | None = None,
        place_network: Callable[[int], object] = lambda cores: None,
    ) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        if config.partition is None:
            raise InputError("several ranks need a partition, got none (config: partition); plan or tune for this number of sockets")
        if config.partition.ranks != self.ranks:
            raise InputError(f"the partition is for {config.partition.ranks} ranks, got {self.ranks}; plan for this number of sockets")
        if model.minibatch < self.ranks:
            raise InputError(f"every rank needs a sample, got a minibatch of {model.minibatch} for {self.ranks} ranks; raise --minibatch")
        check_partition(model, config.partition)
        self.global_model, self.partition = model, config.partition
        self._place_network = place_network
        self._bounds = sample_bounds(model.minibatch, self.ranks)
        self._own = (self._bounds[self.rank], self._bounds[self.rank + 1])
        self._connections: dict[tuple[object, ...], Connection] = {}
        local = model.model_copy(update={"minibatch": self._own[1] - self._own[0]})
        super().__init__(local, config, seed, machine=machine)
        self._connect()

    @property
    def minibatch(self) -> int:
        return self.global_model.minibatch

    def own_labels(self, batch: Batch) -> torch.Tensor:
        return batch.labels[self._own[0] : self._own[1]]

    def of_all_ranks(self, values: np.ndarray) -> np.ndarray:
        """The values of every rank, one after another. Every rank must call it."""
        everybodys: list[np.ndarray] = [values] * self.ranks
        dist.all_gather_object(everybodys, values)
        return np.concatenate(everybodys)

    def _make_tables(self, seed: int) -> None:
        model, huge_pages, threads = self.model, self.config.huge_pages, self.config.threads
        self._parts = [parts_of(model, self.partition, rank) for rank in range(self.ranks)]
        copies = [Part(t, (0, model.tables[t].rows), (0, model.embedding_dim)) for t in replicated(self.partition)]
        # A dense gradient is reduced in 2*rows rows; the pooled gradients of all samples are as many rows as samples.
        dense = [part for part in copies if 2 * part.rows[1] <= self.global_model.minibatch]
        sparse = [part for part in copies if part not in dense]
        self._shard = Shard(self._parts[self.rank], model, seed, huge_pages=huge_pages, threads=threads)
        self._sparse = Shard(sparse, model, seed, huge_pages=huge_pages, threads=threads)
        self._dense = Shard(dense, model, seed, huge_pages=huge_pages, threads=threads)

    def configure(self, config: RunConfig) -> None:
        """As `DLRM.configure`; the partition must stay. Every rank must call it. Connections of the last few choices are kept.

        Raises:
            InputError: as there, or another partition.
        """
        if config.partition != self.partition:
            raise InputError("a model in memory keeps its partition; make another one for another partition")
        super().configure(config)
        self._connect()

    def _connect(self) -> None:
        """Buffers of the exchanges and of the reduction under the communication knobs in force."""
        knobs = self.communication
        key = (knobs.all_to_all, knobs.wire_dtype, knobs.overlap, knobs.bucket_bytes)
        connection = self._connections.pop(key, None)
        if connection is None:
            connection = Connection(self._parts, self._sparse, self._dense, self._layers, self._bounds, self.rank, knobs)
        self._connections[key] = connection
        while len(self._connections) > _KEPT_CONNECTIONS:
            self._connections.pop(next(iter(self._connections)))
        self._link = connection
        connection.attach(self._layers)
        self._place_network(knobs.communication_cores)

    @property
    def communication(self) -> CommunicationKnobs:
        return self.config.communication or CommunicationKnobs()

    def _move_tables(self) -> None:
        for shard in (self._shard, self._sparse, self._dense):
            shard.move(self.config.huge_pages, self.config.threads)

    @contextmanager
    def _talking(self, key: str) -> Iterator[None]:
        with self.recorder.measure(key), busy(key, waits=True, limited=True):
            yield

    def step(self, batch: Batch) -> float:
        """One training iteration on the global batch; returns its mean loss, the same on every rank.

        Raises:
            IndexError: an index outside its table.
            ValueError: the batch does not fit the model.
        """
        if batch.dense.shape[0] != self.minibatch:
            raise ValueError(f"a batch must hold the global minibatch of {self.minibatch} samples, got {batch.dense.shape[0]}")
        with busy("step", limited=True):
            return self._step(batch)

    def _step(self, batch: Batch) -> float:
        own, of_all = self._own[1] - self._own[0], self.minibatch
        buffers, threads, measure = self._buffers, self.config.threads, self.recorder.measure
        rate = self.model.learning_rate
        self._link.buckets.begin()
        lookups = self._forward_parallel(batch, buffers)
        with measure(loss.KEY):
            mean = loss.binary_cross_entropy(buffers.top[-1], self.own_labels(batch), buffers.d_top[-1])
            buffers.d_top[-1].mul_(own / of_all)
            self._link.buckets.gradients[LOSS].fill_(mean * own / of_all)
        for i in reversed(range(len(self._top))):
            with measure(f"top_mlp.{i}.backward_data"):
                mask = buffers.top[i] if i > 0 else None
                knobs = self._layer_knobs(f"top_mlp.{i}.backward_data")
                self._top[i].backward_data(buffers.d_top[i + 1], mask, buffers.d_top[i], knobs, threads)
        self._backward_interaction(buffers)
        self._send_gradients(buffers, lookups)
        for i in reversed(range(len(self._top))):
            self._reduce_layer(f"top_mlp.{i}", buffers.d_top[i + 1], buffers.top[i])
        self._backward_bottom_parallel(batch, buffers)
        self._finish(lookups, rate)
        return float(self._link.buckets.gradients[LOSS])

    def _forward_parallel(self, batch: Batch, buffers: _Buffers) -> _Selected:
        threads, measure, knobs = self.config.threads, self.recorder.measure, self._forward_knobs()
        with measure(SELECT):
            lookups = _Selected(
                owned=self._shard.select(batch),
                all_sparse=self._sparse.select(batch),
                own_sparse=self._sparse.select(batch, self._own),
                own_dense=self._dense.select(batch, self._own),
            )
        with measure(embedding_bag.FORWARD):
            self._shard.forward(lookups.owned, self._link.out.owned, knobs, threads)
        with self._talking(all_to_all.FORWARD):
            self._link.out.start()
            if not self.communication.overlap:
                self._link.out.wait()
        self._forward_bottom(batch.dense[self._own[0] : self._own[1]], buffers)
        with measure(embedding_bag.FORWARD):
            self._sparse.forward(lookups.own_sparse, self._link.pooled_sparse, knobs, threads)
            self._dense.forward(lookups.own_dense, self._link.pooled_dense, knobs, threads)
        with self._talking(all_to_all.FORWARD):
            if self.communication.overlap:
                self._link.out.wait()
            self._place(buffers.features)
        self._forward_top(buffers)
        return lookups

    def _place(self, features: torch.Tensor) -> None:
        """What came from the owners, and what this rank pooled itself, to where the interaction reads it; partial sums are added."""
        begun = set()
        sides = [*zip(self._parts, self._link.out.blocks, strict=True)]
        copies = ((self._sparse, self._link.pooled_sparse), (self._dense, self._link.pooled_dense))
        sides += [(list(shard.parts), pooled) for shard, pooled in copies]
        for parts, block in sides:
            column = 0
            for part in parts:
                to, source = features[:, 1 + part.table, slice(*part.columns)], block[:, column : column + part.width]
                if part.sums and part.table in begun:
                    to.add_(source)
                else:
                    to.copy_(source)
                begun.add(part.table)
                column += part.width

    def _send_gradients(self, buffers: _Buffers, lookups: _Selected) -> None:
        d_features, measure = buffers.d_features, self.recorder.measure
        with self._talking(all_to_all.BACKWARD):
            for parts, block in zip(self._parts, self._link.back.blocks, strict=True):
                _gather_columns(d_features, (*parts, *self._sparse.parts), block)
            self._link.back.start()
            if not self.communication.overlap:
                self._link.back.wait()
        with measure(embedding_bag.UPDATE):
            if self._link.table_gradients is not None:
                _gather_columns(d_features, self._dense.parts, self._link.pooled_dense)
                for gradient in self._link.table_gradients.weights:
                    gradient.zero_()
                count = len(self._dense.parts)
                update = _repeatable(self._update_knobs())
                # An update of zeros at learning rate -1 adds up the gradient.
                view = self._link.pooled_dense.view(-1, count, self.model.embedding_dim)
                self._link.table_gradients.update(lookups.own_dense[0], view, -1.0, update, self.config.threads)
        with self._talking(all_reduce.KEY):
            self._link.buckets.ready(LOSS, *(f"table.{part.table}" for part in self._dense.parts))

    def _reduce_layer(self, name: str, dy: torch.Tensor, x: torch.Tensor) -> None:
        with self.recorder.measure(f"{name}.backward_weights"):
            self._layers[name].gradients(dy, x, self._layer_knobs(f"{name}.backward_weights"), self.config.threads)
        with self._talking(all_reduce.KEY):
            self._link.buckets.ready(f"{name}.w", f"{name}.b")

    def _backward_bottom_parallel(self, batch: Batch, buffers: _Buffers) -> None:
        self._mask_dense(buffers)
        dense = batch.dense[self._own[0] : self._own[1]]
        for i in reversed(range(len(self._bottom))):
            below = buffers.bottom[i - 1] if i > 0 else dense
            if i > 0:
                with self.recorder.measure(f"bottom_mlp.{i}.backward_data"):
                    knobs = self._layer_knobs(f"bottom_mlp.{i}.backward_data")
                    self._bottom[i].backward_data(buffers.d_bottom[i], below, buffers.d_bottom[i - 1], knobs, self.config.threads)
            self._reduce_layer(f"bottom_mlp.{i}", buffers.d_bottom[i], below)

    def _finish(self, lookups: _Selected, rate: float) -> None:
        threads, measure, update = self.config.threads, self.recorder.measure, self._update_knobs()
        with self._talking(all_to_all.BACKWARD):
            if self.communication.overlap:
                self._link.back.wait()
        with measure(embedding_bag.UPDATE):
            gradient, width = self._link.back.owned, self._shard.width
            self._shard.update(lookups.owned, gradient[:, :width], rate, update, threads)
            self._sparse.update(lookups.all_sparse, gradient[:, width:], rate, _repeatable(update), threads)
        with self._talking(all_reduce.KEY):
            self._link.buckets.wait()
        with measure(OPTIMIZER):
            for layer in self._layers.values():
                layer.descend(rate, threads)
            for part, bags, t in self._dense.tables:
                bags.descend(t, self._link.buckets.gradients[f"table.{part.table}"], rate)

    def operators(self, source: BatchSource) -> list[Operator]:
        """This rank's passes in the order they run, those that talk included; see `DLRM.operators`."""
        batches = [source.batch(i) for i in range(_ROTATE_BATCHES)]
        shards = (self._shard, self._sparse, self._dense)
        of_all, of_own = self.minibatch, self._own[1] - self._own[0]
        whole = [[shard.select(batch) for batch in batches] for shard in shards]
        own = [[shard.select(batch, self._own) for batch in batches] for shard in shards]
        forward = zip(shards, [whole[0], own[1], own[2]], [of_all, of_own, of_own], strict=True)
        update = zip(shards, [whole[0], whole[1], own[2]], [of_all, of_all, of_own], strict=True)
        selected = 8 * sum(lookups.indices.numel() for of_shard in whole for lookups in of_shard[0])
        weights = 4 * sum(layer.d_weight.numel() + layer.d_bias.numel() for layer in self._layers.values())
        dense, link = self._dense_operators(), self._link
        return [
            Fixed(SELECT, Work(flops=0, bytes_read=selected, bytes_written=selected)),
            *shard_passes(embedding_bag.FORWARD, list(forward)),
            Fixed(all_to_all.FORWARD, link.out.work()),
            *dense.bottom_forward,
            *dense.top,
            Fixed(all_to_all.BACKWARD, link.back.work()),
            *dense.bottom_backward,
            *shard_passes(embedding_bag.UPDATE, list(update)),
            Fixed(all_reduce.KEY, link.buckets.work(self.ranks)),
            Fixed(OPTIMIZER, Work(flops=weights // 2, bytes_read=2 * weights, bytes_written=weights)),
        ]

    def tables_alone(self, source: BatchSource) -> list[TableAlone]:
        """Every table, or part of one, that this rank owns, by itself; copies of replicated tables left out."""
        chosen = [self._shard.select(source.batch(i)) for i in range(_ROTATE_BATCHES)]
        found = []
        for g, (parts, bags) in enumerate(self._shard.parts_and_bags):
            found += tables_alone(bags, [part.table for part in parts], [batch[g] for batch in chosen], self.minibatch)
        return found

    def talk(self, key: str, share: float = 1.0) -> Callable[[], None]:
        """One transfer of a step alone, with nothing beside it: `all_to_all.forward`, `all_to_all.backward` or `all_reduce`.

        Args:
            share: of the bytes that travel. What is called overwrites buffers of the step, which every step fills anew.
        """
        return self._link.talk(key, share)

    def parts(self) -> list[tuple[Part, EmbeddingBags, int]]:
        """What this rank holds of the tables, replicated ones included: every part, the bags that hold it and its number among them."""
        return [*self._shard.tables, *self._sparse.tables, *self._dense.tables]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The whole model on rank 0, gathered table by table; the dense layers alone on every other rank. Every rank must call it."""
        state = {}
        for t, table in enumerate(self.model.tables):
            gathered = self._gather(t, lambda bags, i: bags.table(i))
            if gathered is not None:
                whole = torch.empty(table.rows, table.dim)
                for part, weight in gathered:
                    whole[slice(*part.rows), slice(*part.columns)] = weight
                state[f"emb_l.{t}.weight"] = whole
        return state | self._dense_state()

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """As `state_dict`: of the whole model on rank 0, and of the dense layers alone elsewhere. Every rank must call it."""
        state = {}
        if self.model.optimizer == "adagrad":
            for t, table in enumerate(self.model.tables):
                gathered = self._gather(t, lambda bags, i: bags.state(i))
                if gathered is not None:
                    whole = torch.empty(table.rows)
                    for part, sums in gathered:
                        whole[slice(*part.rows)] = sums
                    state[f"emb_l.{t}.weight"] = whole
        return state | self._dense_optimizer_state()

    def _gather(self, table: int, of: Callable[[EmbeddingBags, int], torch.Tensor | None]) -> list[tuple[Part, torch.Tensor]] | None:
        """Every rank's parts of a table, on rank 0; None elsewhere."""
        mine = [(part, value) for part, bags, t in self.parts() if part.table == table and (value := of(bags, t)) is not None]
        gathered: list[list[tuple[Part, torch.Tensor]]] | None = [[] for _ in range(self.ranks)] if self.rank == 0 else None
        dist.gather_object(mine, gathered, dst=0)
        return None if gathered is None else [pair for of_rank in gathered for pair in of_rank]

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy in this rank's share of a whole model's weights."""
        for part, bags, t in self.parts():
            bags.load(t, state[f"emb_l.{part.table}.weight"][slice(*part.rows), slice(*part.columns)])
        self._load_dense(state)

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy in this rank's share of what a whole model's optimizer had summed."""
        if self.model.optimizer == "adagrad":
            for part, bags, t in self.parts():
                bags.load_state(t, state[f"emb_l.{part.table}.weight"][slice(*part.rows)])
        for name, value in self._dense_optimizer_state().items():
            value.copy_(state[name])
