"""The ranks' models driven by rank 0: it uses them like one DLRM, and the other ranks do what it says.

Decisions that depend on a clock (another round? is the budget spent?) differ between ranks, and ranks that disagree wait for each other
for ever. So only rank 0 decides. It announces each batch, configuration and step; a step ends with a barrier, so that its time is the
slowest rank's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
import torch.distributed as dist

from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.profile import Topology
from autotune.data.batches import Batch, BatchSource
from autotune.dlrm.model import DLRM
from autotune.dlrm.ranks import busy
from autotune.ops.base import Operator
from autotune.ops.embedding_bag import TableAlone
from autotune.ops.memory import World
from autotune.ops.timing import Recorder

_KEPT_BATCHES = 16
"""More than one turn of a comparison uses."""
_KEPT_STEPS = 256
_WORDS = ("end", "batch", "step", "watched", "configure", "task")
_WITH_OBJECT = ("configure", "task")

Task = Callable[..., Any]


def waiting(key: str) -> AbstractContextManager[None]:
    """What a rank tells the supervisor while it is in a step, or waits for other ranks in one."""
    return busy(key, waits=key != "step", limited=True)


class Lockstep:
    """A model on several ranks. Rank 0 calls `configure`, `step`, `operators`, `everywhere`, at last `end`; every other rank `follow`.

    Args:
        model: with the global minibatch.
        config: with the partition.
        source: of the batches; the same on every rank.
        seed: of the initial weights.
        machine: this rank's cores.
        place_network: see `DLRM`.
        tasks: what `everywhere` can run: called on every rank with this object and the arguments.
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
        tasks: Mapping[str, Task] | None = None,
        keep_models: int = 1,
    ) -> None:
        self.model, self._source, self._seed, self._machine = model, source, seed, machine
        self._place_network, self._tasks = place_network, dict(tasks or {})
        self._models: dict[str, DLRM] = {}
        self._batches: dict[int, Batch] = {}
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.description, self.has_labels = source.description, source.has_labels
        self.recorded: deque[dict[str, float]] = deque(maxlen=_KEPT_STEPS)
        """On the ranks that follow: seconds by pass, of each step since they were taken."""
        kept = [keep_models]
        dist.broadcast_object_list(kept, 0)  # each rank sees another amount of free memory, and all must keep the same models
        self._keep = kept[0]
        self._configure(config)

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
        self._say("batch", i)
        return self._batch(i)

    def configure(self, config: RunConfig) -> None:
        """Use another configuration everywhere; one with another partition has a model, and so weights, of its own."""
        self._say("configure", config.model_dump_json())
        self._configure(config)

    def step(self, batch: Batch) -> float:
        """One training iteration; the batch must be one of the last sixteen that `batch` gave."""
        number = next(number for number, one in self._batches.items() if one is batch)
        self._say("watched" if self.recorder.watched else "step", number)
        return self._step(number)

    def operators(self, source: BatchSource) -> list[Operator]:
        """Of this rank."""
        return self.dlrm.operators(self._source)

    def tables_alone(self, source: BatchSource) -> list[TableAlone]:
        """Of this rank."""
        return self.dlrm.tables_alone(self._source)

    def everywhere(self, task: str, *arguments: Any) -> Any:
        """Run one of the tasks on every rank at once; returns what it gives on this one."""
        self._say("task", (task, arguments))
        return self._tasks[task](self, *arguments)

    def end(self) -> None:
        """Let the other ranks return from `follow`."""
        self._say("end", 0)

    def follow(self) -> None:
        """Do what rank 0 says until it ends."""
        while True:
            word = torch.zeros(2, dtype=torch.int64)
            with busy("waiting for rank 0", waits=True):
                dist.broadcast(word, 0)
            what, value = _WORDS[int(word[0])], cast(Any, int(word[1]))
            if what in _WITH_OBJECT:
                said: list[Any] = [None]
                dist.broadcast_object_list(said, 0)
                value = said[0]
            if what == "end":
                return
            if what == "batch":
                self._batch(value)
            elif what == "configure":
                self._configure(RunConfig.model_validate_json(value))
            elif what in ("step", "watched"):
                self.recorder.watch(what == "watched")  # rank 0 may ask when the passes ran
                self._step(value)
                self.recorded.append(self.recorder.take())
            else:
                task, arguments = value
                self._tasks[task](self, *arguments)

    def _say(self, what: str, value: Any) -> None:
        if self.rank:
            return
        # A step is announced by two numbers: an object takes several messages, which would count to its time.
        with_object = what in _WITH_OBJECT
        dist.broadcast(torch.tensor([_WORDS.index(what), 0 if with_object else value]), 0)
        if with_object:
            dist.broadcast_object_list([value], 0)

    def _batch(self, i: int) -> Batch:
        with busy(f"making batch {i}"):
            batch = self._batches.pop(i, None) or self._source.batch(i)
        self._batches[i] = batch
        while len(self._batches) > _KEPT_BATCHES:
            self._batches.pop(next(iter(self._batches)))
        return batch

    def _step(self, number: int) -> float:
        value = self.dlrm.step(self._batches[number])
        dist.barrier()
        return value

    def _configure(self, config: RunConfig) -> None:
        assert config.partition is not None
        key = config.partition.model_dump_json()
        found = self._models.pop(key, None)
        if found is not None:
            self._models[key] = found
            found.configure(config)
            return
        while len(self._models) >= self._keep:
            self._models.pop(next(iter(self._models)))
        self._models[key] = DLRM(
            self.model, config, self._seed, machine=self._machine,
            world=World(self.rank, self.ranks, place_network=self._place_network, waiting=waiting),
        )
        dist.barrier()


def take_recorded(lockstep: Lockstep, own: list[dict[str, float]] | None, steps: int) -> list[list[dict[str, float]]]:
    """Task: seconds by pass of the last `steps` steps, of every rank; rank 0 brings its own."""
    mine = own if lockstep.rank == 0 and own is not None else list(lockstep.recorded)
    everybodys: list[list[dict[str, float]]] = [[] for _ in range(lockstep.ranks)]
    dist.all_gather_object(everybodys, mine[-steps:] if steps else [])
    lockstep.recorded.clear()
    return everybodys
