"""The ranks of `test_parallel`: each trains every case that it is given, and rank 0 writes losses and weights."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from forked import run_forked

from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.partition import CommunicationKnobs, Partition
from autotune.data.batches import make_source
from autotune.dlrm.model import DLRM
from autotune.dlrm.train import evaluate
from autotune.ops.embedding_tables import EmbeddingUpdateKnobs
from autotune.ops.memory import World


def train(cases_file: str, out: str, store: str, ranks: int, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    cases = json.loads(Path(cases_file).read_text())
    for number, case in enumerate(cases):
        model = Model.model_validate_json(json.dumps(case["model"]))
        partition = Partition.model_validate_json(json.dumps(case["partition"]))
        knobs = CommunicationKnobs.model_validate_json(json.dumps(case["communication"]))
        update = EmbeddingUpdateKnobs(strategy=case["strategy"])
        # Without huge pages: zeroing one takes longer than a step.
        operators = {"embedding_bag.update": update}
        config = RunConfig(threads=1, huge_pages=False, operators=operators, partition=partition, communication=knobs)
        dlrm = DLRM(model, config, world=World(rank, ranks))
        source = make_source(model)
        losses = [dlrm.step(source.batch(i)) for i in range(case["steps"])]
        state, sums = dlrm.state_dict(), dlrm.optimizer_state()
        # As of a file that ends in the second batch: the last rank has no sample of it.
        source.rows_within = lambda limit, rows=model.minibatch + 1: rows
        evaluation = evaluate(dlrm, source).evaluation
        assert evaluation is not None
        copies = [bags.table(t) for part, bags, t in dlrm.parts() if not partition.tables[part.table].ranks]
        digests: list[list[float]] = [[] for _ in range(ranks)]
        dist.all_gather_object(digests, [float(weight.double().sum()) for weight in copies])
        all_losses: list[list[float]] = [[] for _ in range(ranks)]
        dist.all_gather_object(all_losses, losses)
        if rank == 0:
            torch.save({"losses": all_losses, "state": state, "sums": sums, "copies": digests, "loss": evaluation.loss}, f"{out}.{number}")
    dist.destroy_process_group()


if __name__ == "__main__":
    cases_file, out, store, ranks = sys.argv[1:]
    run_forked([functools.partial(train, cases_file, out, store, int(ranks), rank) for rank in range(int(ranks))])
