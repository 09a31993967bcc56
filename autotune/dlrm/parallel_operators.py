"""The operator passes that a model on several ranks has beside, or instead of, those of one."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.config.knobs import FixedKnobs, Knobs
from autotune.config.profile import Topology
from autotune.dlrm.sharding import Shard
from autotune.errors import InputError
from autotune.ops import embedding_bag
from autotune.ops.base import Case, Operator, Work
from autotune.ops.embedding_bag import Lookups


class Fixed(Operator):
    """A pass with nothing to choose, which only makes sense within a step."""

    runs_alone = False

    def __init__(self, key: str, work: Work) -> None:
        self.key, self._work = key, work

    def work(self) -> Work:
        return self._work

    def default(self, machine: Topology) -> FixedKnobs:
        return FixedKnobs()

    def candidates(self, machine: Topology, threads: int) -> Sequence[FixedKnobs]:
        return [FixedKnobs()]

    def case(self, seed: int, warm: bool = False) -> Case:
        raise InputError(f"{self.key} runs only within a step, with all ranks; profile on one socket to time passes alone")


class ShardPass(Operator):
    """One embedding pass over all parts of a rank: the work of all, the choices and the timing of the heaviest group of one width."""

    def __init__(self, key: str, groups: Sequence[Operator]) -> None:
        self.key, self._groups = key, tuple(groups)
        self._heaviest = max(groups, key=lambda group: group.work().bytes)

    def work(self) -> Work:
        works = [group.work() for group in self._groups]
        return Work(
            flops=sum(work.flops for work in works),
            bytes_read=sum(work.bytes_read for work in works),
            bytes_written=sum(work.bytes_written for work in works),
            access=works[0].access,
            rows=tuple(rows for work in works for rows in work.rows),
            parallel_regions=sum(work.parallel_regions for work in works),
        )

    def default(self, machine: Topology) -> Knobs:
        return self._heaviest.default(machine)

    def candidates(self, machine: Topology, threads: int) -> Sequence[Knobs]:
        return self._heaviest.candidates(machine, threads)

    def case(self, seed: int, warm: bool = False) -> Case:
        return self._heaviest.case(seed, warm)


def shard_passes(key: str, shards: Sequence[tuple[Shard, Sequence[Sequence[Lookups]], int]]) -> list[Operator]:
    """The pass `key` of a rank; empty where it holds no table.

    Args:
        shards: with the look-ups of several batches, each by group, and the samples pooled.
    """
    kind = embedding_bag.EmbeddingForward if key == embedding_bag.FORWARD else embedding_bag.EmbeddingUpdate
    groups = [
        kind(bags, [batch[g] for batch in batches], samples)
        for shard, batches, samples in shards
        for g, bags in enumerate(shard.groups)
    ]
    return [ShardPass(key, groups)] if groups else []
