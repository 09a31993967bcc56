"""The ranks' models driven by rank 0: it uses them like one DLRM, and the other ranks do what it says.

Decisions that depend on a clock (another round? is the budget spent?) differ between ranks, and ranks that disagree wait for each other
for ever. So only rank 0 decides. It announces each batch, configuration and step; a step ends with a barrier, so that its time is the
slowest rank's. One rank is a world of one: nothing is announced, and a step is the model's own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch

from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.profile import Topology
from autotune.data.batches import Batch, BatchSource
from autotune.dlrm.model import DLRM
from autotune.machine.activity import busy
from autotune.ops.base import Operator
from autotune.ops.memory import World
from autotune.ops.native import dist
from autotune.ops.timing import Recorder
from autotune.ranks import group

P = ParamSpec("P")
T = TypeVar("T")

_KEPT_BATCHES = 16
"""More than one turn of a comparison uses."""
_ORDERS = ("end", "batch", "step", "watched", "configure", "task")
_WITH_OBJECT = ("end", "configure", "task")


def waiting(key: str) -> AbstractContextManager[None]:
    """What a rank tells the supervisor while it is in a step, or waits for other ranks in one."""
    return busy(key, waits=key != "step", limited=True)


class Lockstep:
    """A model on its ranks, one or several. Every rank makes it, and then calls `drive` with the same function.

    Args:
        model: with the global minibatch.
        config: with the partition, on several ranks.
        source: of the batches; the same on every rank.
        seed: of the initial weights.
        machine: this rank's cores.
        place_network: called with the number of cores that are left to the network's threads.
        keep_models: Partitions whose models stay in memory at once; rank 0's number counts.
    """

    def __init__(
        self,
        model: Model,
        config: RunConfig,
        source: BatchSource,
        seed: int | None = None,
        *,
        machine: Topology | None = None,
        place_network: Callable[[int], object] = lambda cores: None,
        keep_models: int = 1,
    ) -> None:
        self.model, self.source, self._seed, self.machine = model, source, seed, machine
        self._place_network = place_network
        self._models: dict[str, DLRM] = {}
        self._batches: dict[int, Batch] = {}
        self.rank, self.ranks = group.rank(), group.size()
        self.description, self.has_labels = source.description, source.has_labels
        self._recorded: list[dict[str, float]] = []
        self._keep = group.broadcast(keep_models)  # each rank sees another amount of free memory, and all must keep the same models
        self._configure(config)

    def drive(self, body: Callable[[Lockstep], T]) -> T:
        """Rank 0 runs `body` with this object, the others follow; returns on every rank what `body` returned on rank 0."""
        if self.rank:
            return cast(T, self._follow())
        result = body(self)
        self._announce("end", result)
        return result

    @property
    def dlrm(self) -> DLRM:
        """This rank's share, under the configuration in force."""
        return next(reversed(self._models.values()))

    @property
    def config(self) -> RunConfig:
        return self.dlrm.config

    @property
    def recorder(self) -> Recorder:
        return self.dlrm.recorder

    @property
    def minibatch(self) -> int:
        return self.model.minibatch

    def batch(self, i: int) -> Batch:
        """Batch `i`, made on every rank at the same time. This makes the object a `BatchSource` for rank 0's loops."""
        self._announce("batch", i)
        return self._batch(i)

    def configure(self, config: RunConfig) -> None:
        """Use another configuration everywhere; one with another partition has a model, and so weights, of its own."""
        self._announce("configure", config.model_dump_json())
        self._configure(config)

    def step(self, batch: Batch) -> float:
        """One training iteration; the batch must be one of the last sixteen that `batch` gave."""
        if self.ranks == 1:
            return float(self.dlrm.step(batch))
        number = next(number for number, kept in self._batches.items() if kept is batch)
        self._announce("watched" if self.recorder.watched else "step", number)
        return self._step(number)

    def operators(self) -> list[Operator]:
        """Operator passes of this rank."""
        return list(self.dlrm.operators(self.source))

    def take_recorded(self) -> list[dict[str, float]]:
        """On a rank that follows: seconds by pass of each step that was watched since they were last taken."""
        recorded, self._recorded = self._recorded, []
        return recorded

    def everywhere(self, task: Callable[Concatenate[Lockstep, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function of a module on every rank at once, with this object and the arguments; returns what it gives on this rank."""
        self._announce("task", (task, args, kwargs))
        return task(self, *args, **kwargs)

    def _follow(self) -> Any:
        """Do what rank 0 says until it ends; what it ended with."""
        while True:
            message = torch.zeros(2, dtype=torch.int64)
            with busy("waiting for rank 0", waits=True):
                dist.broadcast(message, 0)
            order, value = _ORDERS[int(message[0])], cast(Any, int(message[1]))
            if order in _WITH_OBJECT:
                value = group.broadcast(None)
            if order == "end":
                return value
            if order == "batch":
                self._batch(value)
            elif order == "configure":
                self._configure(RunConfig.model_validate_json(value))
            elif order in ("step", "watched"):
                self.recorder.watch(order == "watched")  # rank 0 may ask when the passes ran
                self._step(value)
                passes_s = self.recorder.take()
                self._recorded += [passes_s] if order == "watched" else []
            else:
                task, args, kwargs = value
                task(self, *args, **kwargs)

    def _announce(self, order: str, value: Any) -> None:
        if self.rank or self.ranks == 1:
            return
        # A step is announced by two numbers: an object takes several messages, which would count to its time.
        with_object = order in _WITH_OBJECT
        dist.broadcast(torch.tensor([_ORDERS.index(order), 0 if with_object else value]), 0)
        if with_object:
            group.broadcast(value)

    def _batch(self, i: int) -> Batch:
        if self.ranks == 1:
            return self.source.batch(i)
        with busy(f"making batch {i}"):
            batch = self._batches.pop(i, None) or self.source.batch(i)
        self._batches[i] = batch
        while len(self._batches) > _KEPT_BATCHES:
            self._batches.pop(next(iter(self._batches)))
        return batch

    def _step(self, number: int) -> float:
        value = float(self.dlrm.step(self._batches[number]))
        group.barrier()
        return value

    def _configure(self, config: RunConfig) -> None:
        key = config.partition.model_dump_json() if config.partition else ""
        kept = self._models.pop(key, None)
        if kept is not None:
            self._models[key] = kept
            kept.configure(config)
            return
        while len(self._models) >= self._keep:
            self._models.pop(next(iter(self._models)))
        world = World(self.rank, self.ranks, place_network=self._place_network, waiting=waiting)
        self._models[key] = DLRM(self.model, config, self._seed, machine=self.machine, world=world)
        group.barrier()
