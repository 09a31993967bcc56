"""The model in memory: an executor that walks a schedule on buffers that stay from step to step.

The semantics are the public DLRM's. One socket is one rank; with several, every rank reads the same global batch and works on its slice of
the samples, and the gradient is that of the mean loss over the global batch, so that a step equals the single-rank step up to the order of
additions.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.partition import CommunicationKnobs, Partition
from autotune.config.profile import Topology
from autotune.data.batches import Batch, BatchSource
from autotune.dlrm.defaults import complete
from autotune.dlrm.schedule import layer_shapes, schedule
from autotune.dlrm.sharding import check_partition
from autotune.errors import InputError
from autotune.ops.base import Live, Operator
from autotune.ops.collective import Collective
from autotune.ops.embedding_tables import EmbeddingBags
from autotune.ops.layer import Layer
from autotune.ops.memory import Memory, World
from autotune.ops.native import dist, kernels
from autotune.ops.schedule import Instruction, Schedule
from autotune.ops.shards import Part, Shard
from autotune.ops.table_alone import TableAlone, tables_alone
from autotune.ops.timing import Recorder

_ROTATE_BATCHES = 4
"""Batches an embedding operator rotates through when it is timed alone."""

_ALONE = World()


class DLRM:
    """One rank's share of a model in memory, ready to train. With several ranks every rank makes it with the same arguments.

    Args:
        model: shapes, learning rate, seed; with the global minibatch.
        config: what to use where; passes it does not name take their default. None: every default. Several ranks need its partition.
        seed: of the initial weights; None takes the model's.
        machine: this rank's cores, from which defaults are derived; None takes the CPUs this process may use.
        world: this rank among all; the default is a world of one. With more, torch.distributed must be initialised.

    Raises:
        InputError: the config names a pass the model has not, or gives it knobs of another kind; the partition is missing, for other tables
            or another number of ranks; there are fewer samples than ranks.
        MachineError: the memory cannot be had.
    """

    def __init__(
        self,
        model: Model,
        config: RunConfig | None = None,
        seed: int | None = None,
        *,
        machine: Topology | None = None,
        world: World = _ALONE,
    ) -> None:
        self.global_model, self.machine, self.world = model, machine, world
        self.partition = config.partition if config is not None and world.ranks > 1 else None
        if world.ranks > 1:
            self._check_partition(model)
        self.recorder = Recorder()
        # Without a reference to this model, which would keep its tables until the next garbage collection.
        self._schedule_of = functools.lru_cache(maxsize=8)(functools.partial(_make_schedule, model, self.partition, world.rank))
        self.communication = (config and config.communication) or CommunicationKnobs()
        self.schedule = self._schedule_of(self.communication, model.minibatch)
        self.model = self.schedule.model
        self.config = complete(config, self.schedule, machine)
        self.memory = Memory(self.model, world, self.model.seed if seed is None else seed, self.config.threads)
        torch.set_num_threads(self.config.threads)
        self._prepare()

    def _check_partition(self, model: Model) -> None:
        if self.partition is None:
            raise InputError("several ranks need a partition, got none (config: partition); plan or tune for this number of sockets")
        if self.partition.ranks != self.world.ranks:
            rule = f"the partition is for {self.partition.ranks} ranks"
            raise InputError(f"{rule}, got {self.world.ranks}; plan for this number of sockets")
        check_partition(model, self.partition)

    def _prepare(self) -> None:
        """Fit modules and buffers to the schedule and the knobs, and compile the step."""
        for each in self.schedule.passes:
            each.operator.prepare(self.memory, self.config.operators.get(each.key), self.config)
            for buffer in (*each.reads, *each.writes):
                self.memory.allocate(buffer)
        self.world.place_network(self.communication.communication_cores)
        instructions, forward_passes = self.schedule.instructions, self.schedule.forward_passes
        self._calls = [self._call(instruction) for instruction in instructions]
        self._forward_calls = [self._call(instruction) for instruction in instructions if instruction.number < forward_passes]

    def _call(self, instruction: Instruction) -> Callable[[], None]:
        """One instruction of the step, timed under the key of its pass."""
        each, memory, measure = self.schedule.passes[instruction.number], self.memory, self.recorder.measure
        operator, key, waiting = each.operator, each.key, self.world.waiting
        if instruction.what == "run":
            knobs, threads = self.config.operators.get(key), self.config.threads

            def run() -> None:
                with measure(key):
                    operator.run(memory, knobs, threads)

            return run
        assert isinstance(operator, Collective)
        act = operator.start if instruction.what == "start" else operator.wait

        def transfer() -> None:
            with measure(key), waiting(key):
                act(memory)

        return transfer

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def ranks(self) -> int:
        return self.world.ranks

    @property
    def minibatch(self) -> int:
        """Samples per iteration, over all ranks."""
        return self.global_model.minibatch

    def own_labels(self, batch: Batch) -> torch.Tensor:
        """The labels that `probabilities` are about."""
        return batch.labels[slice(*self.schedule.samples)]

    def of_all_ranks(self, values: np.ndarray) -> np.ndarray:
        """The values of every rank, one after another. Every rank must call it."""
        if self.ranks == 1:
            return values
        gathered: list[Any] = [None] * self.ranks
        dist.all_gather_object(gathered, values)
        return np.concatenate(gathered)

    def configure(self, config: RunConfig) -> None:
        """Use other knobs from now on, with the same weights. Changing `huge_pages` copies the tables; all else is cheap.

        Every rank must call it. Buffers of the last few communication choices are kept.

        Raises:
            InputError: as for the constructor, or another partition.
        """
        if self.ranks > 1 and config.partition != self.partition:
            raise InputError("a model in memory keeps its partition; make another one for another partition")
        communication = config.communication or CommunicationKnobs()
        steps = self._schedule_of(communication, self.schedule.global_minibatch)
        config = complete(config, steps, self.machine)
        if config == self.config:
            return
        grown = config.threads != self.config.threads
        self.config, self.communication, self.schedule = config, communication, steps
        torch.set_num_threads(config.threads)
        if grown:
            kernels.fork_join(1, config.threads)  # a team that grows starts threads: here, rather than in the next step
        self._prepare()

    def step(self, batch: Batch) -> float:
        """One training iteration on the global batch; returns the mean loss before the update, the same on every rank.

        Raises:
            IndexError: an index outside its table; on one rank nothing has been changed.
            ValueError: the batch does not fit the model.
        """
        if self.ranks > 1 and batch.dense.shape[0] != self.minibatch:
            raise ValueError(f"a batch must hold the global minibatch of {self.minibatch} samples, got {batch.dense.shape[0]}")
        with self.world.waiting("step"):
            self._begin(batch)
            for call in self._calls:
                call()
            return float(self.memory.buffers["loss"])

    def forward(self, batch: Batch) -> torch.Tensor:
        """Click probabilities of this rank's samples, fp32 [N]. Raises as `step` does."""
        self._begin(batch)
        for call in self._forward_calls:
            call()
        return self.probabilities()

    def probabilities(self) -> torch.Tensor:
        """Click probabilities of the last batch that went forward, before its update: fp32 [N]."""
        return self.memory.buffers[self.schedule.output][:, 0].clone()

    def _begin(self, batch: Batch) -> None:
        """Put the batch where the passes read it; buffers follow a minibatch of another size."""
        if batch.dense.shape[0] != self.schedule.global_minibatch:
            self.schedule = self._schedule_of(self.communication, batch.dense.shape[0])
            self.memory.buffers.clear()
            self._prepare()
        own, memory = slice(*self.schedule.samples), self.memory
        memory.batch = batch
        memory.buffers["input"], memory.buffers["labels"] = batch.dense[own], batch.labels[own]
        if self.ranks == 1:
            memory.lookups["owned"] = memory.modules["shard.owned"].select(batch)

    def operators(self, source: BatchSource) -> list[Operator]:
        """One operator a key, in the order they run, on the live tables; an embedding pass is timed on batches of `source`."""
        live = Live(self.memory, tuple(self._lookups(source.batch(i)) for i in range(_ROTATE_BATCHES)))
        return [operator.bound(live) for operator in self.schedule.operators.values()]

    def _lookups(self, batch: Batch) -> dict[str, Any]:
        """What the embedding passes look up in a batch, by name."""
        self._begin(batch)
        for each in self.schedule.passes:
            if each.operator.selects:
                each.operator.run(self.memory, None, self.config.threads)
        return dict(self.memory.lookups)

    def tables_alone(self, source: BatchSource) -> list[TableAlone]:
        """Every table, or part of one, that this rank owns, by itself on batches of `source`; copies of replicated tables left out."""
        shard: Shard | None = self.memory.modules.get("shard.owned")
        if shard is None:
            return []
        batches = [shard.select(source.batch(i)) for i in range(_ROTATE_BATCHES)]
        tables: list[TableAlone] = []
        for g, (parts, bags) in enumerate(shard.groups):
            tables += tables_alone(bags, [part.table for part in parts], [batch[g] for batch in batches], self.minibatch)
        return tables

    def transfer(self, key: str, share: float = 1.0) -> Callable[[], None]:
        """The transfers `key` of a step with nothing beside them, of a share of their bytes. Overwrites buffers that every step fills."""
        collectives = [each.operator for each in self.schedule.passes if each.key == key]

        def call() -> None:
            for operator in collectives:
                assert isinstance(operator, Collective)
                operator.alone(self.memory, share)

        return call

    def parts(self) -> list[tuple[Part, EmbeddingBags, int]]:
        """What this rank holds of the tables, replicated ones included: every part, the bags that hold it and its number among them."""
        return [entry for module in self.memory.modules.values() if isinstance(module, Shard) for entry in module.tables]

    def _layers(self) -> Iterator[tuple[str, Layer]]:
        """Layers by the public DLRM's names."""
        for name, *_ in layer_shapes(self.model):
            side, _, number = name.partition("_mlp.")
            yield f"{side[:3]}_l.{2 * int(number)}", self.memory.modules[name]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights in fp32 under the public DLRM's names: ``emb_l.<t>.weight``, ``bot_l.<2i>.weight``, ``top_l.<2i>.bias`` ...

        On one rank live in an fp32 model; copies where they are kept in halves. On several, the whole model on rank 0, gathered table by
        table, and the dense layers alone on every other rank; every rank must call it.
        """
        state = self._whole_tables(lambda bags, i: bags.table(i), lambda rows, dim: torch.empty(rows, dim))
        for name, layer in self._layers():
            state[f"{name}.weight"], state[f"{name}.bias"] = layer.weights()
        return state

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """What Adagrad has summed by the name of the weight: fp32 [rows] for a table, the weight's shape for a layer. SGD: empty.

        Live on one rank; on several as `state_dict`.
        """
        if self.model.optimizer == "sgd":
            return {}
        return self._whole_tables(lambda bags, i: bags.state(i), lambda rows, dim: torch.empty(rows)) | self._dense_optimizer_state()

    def _dense_optimizer_state(self) -> dict[str, torch.Tensor]:
        return {f"{name}.{kind}": value for name, layer in self._layers() for kind, value in layer.state.items()}

    def _whole_tables(
        self, of: Callable[[EmbeddingBags, int], torch.Tensor | None], empty: Callable[[int, int], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """A value of every table by the name of its weight, put together of its parts on rank 0; nothing on other ranks."""
        state: dict[str, torch.Tensor] = {}
        for t, table in enumerate(self.model.tables):
            held = [(part, value) for part, bags, i in self.parts() if part.table == t and (value := of(bags, i)) is not None]
            if self.ranks == 1:
                state |= {f"emb_l.{t}.weight": value for _, value in held}
                continue
            gathered: list[Any] | None = [None] * self.ranks if self.rank == 0 else None
            dist.gather_object(held, gathered, dst=0)
            if gathered is not None:
                whole = empty(table.rows, table.dim)
                for part, value in itertools.chain(*gathered):
                    whole[(slice(*part.rows), slice(*part.columns))[: whole.ndim]] = value
                state[f"emb_l.{t}.weight"] = whole
        return state

    def continue_from(self, iterations: int) -> None:
        """Let tables that round stochastically draw from now on what they draw after so many iterations."""
        for _, bags, _ in self.parts():
            bags.continue_from(iterations)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy this rank's share of a whole model's weights in. Names and shapes are those of `state_dict`; see
        `dlrm.checkpoint.check_state` for input from files."""
        for part, bags, t in self.parts():
            bags.load(t, state[f"emb_l.{part.table}.weight"][slice(*part.rows), slice(*part.columns)])
        for name, layer in self._layers():
            layer.load(state[f"{name}.weight"], state[f"{name}.bias"])

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy in this rank's share of what `optimizer_state` of a model of these shapes gave."""
        if self.model.optimizer == "adagrad":
            for part, bags, t in self.parts():
                bags.load_state(t, state[f"emb_l.{part.table}.weight"][slice(*part.rows)])
        for name, value in self._dense_optimizer_state().items():
            value.copy_(state[name])


def _make_schedule(model: Model, partition: Partition | None, rank: int, communication: CommunicationKnobs, minibatch: int) -> Schedule:
    """One rank's step with a minibatch of its own size."""
    return schedule(model.model_copy(update={"minibatch": minibatch}), partition, rank, communication)
