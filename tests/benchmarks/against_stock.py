"""Our default config against stock PyTorch in its best environment: one training iteration, interleaved, same batches, same weights.

    python tests/benchmarks/against_stock.py small mlperf-1m rm2 --rounds 15

Two worker processes, since the best environment of stock PyTorch (an allocator that keeps its memory, huge pages for it) is chosen when a
process starts. Each round times one iteration in each, in turns; losses are compared before anything is timed. Stock is `EmbeddingBag`
with sparse gradients, `Linear`, `bmm` and `optim.SGD`. Prints the median ratio with its bootstrap 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from typing import IO, Any

LOSS_STEPS = 3
BEST_ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_MMAP_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}


def stock_stepper(model: Any, state: dict[str, Any]) -> Any:
    import torch

    def mlp(sizes: tuple[int, ...], name: str, last: torch.nn.Module) -> torch.nn.Sequential:
        layers: list[torch.nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            linear = torch.nn.Linear(inputs, outputs)
            with torch.no_grad():
                linear.weight.copy_(state[f"{name}.{2 * i}.weight"])
                linear.bias.copy_(state[f"{name}.{2 * i}.bias"])
            layers += [linear, torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1], last)

    bottom, top = mlp(model.bottom_mlp, "bot_l", torch.nn.ReLU()), mlp(model.top_sizes, "top_l", torch.nn.Sigmoid())
    tables = [
        torch.nn.EmbeddingBag.from_pretrained(state[f"emb_l.{t}.weight"], freeze=False, mode="sum", sparse=True)
        for t in range(model.num_tables)
    ]
    parameters = [*bottom.parameters(), *top.parameters(), *(table.weight for table in tables)]
    optimizer = torch.optim.SGD(parameters, lr=model.learning_rate)
    rows, columns = torch.tril_indices(model.num_features, model.num_features, -1)

    def prepare(batch: Any) -> Any:
        samples, parts = model.minibatch, []
        for t in range(model.num_tables):
            offsets = batch.offsets[t * samples : (t + 1) * samples + 1]
            begin, end = int(offsets[0]), int(offsets[-1])
            parts.append((batch.indices[begin:end].contiguous(), (offsets[:-1] - begin).contiguous()))
        return batch, parts

    def step(prepared: Any) -> float:
        batch, parts = prepared
        optimizer.zero_grad(set_to_none=True)
        vectors = [bottom(batch.dense), *(table(*part) for table, part in zip(tables, parts, strict=True))]
        stacked = torch.stack(vectors, 1)
        dots = torch.bmm(stacked, stacked.transpose(1, 2))[:, rows, columns]
        loss = torch.nn.functional.binary_cross_entropy(top(torch.cat([vectors[0], dots], 1)).squeeze(1), batch.labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return prepare, step


def work(kind: str, name: str, threads: int) -> None:
    """A worker: for every line on standard input, prepares a batch outside the clock, trains on it and answers with seconds and loss."""
    import torch

    from autotune.catalog import load_model_by_name
    from autotune.dlrm.data import make_source
    from autotune.dlrm.model import DLRM, default_config

    torch.set_num_threads(threads)
    model = load_model_by_name(name)
    dlrm = DLRM(model, default_config(model, threads=threads))
    source = make_source(model)
    prepare, step = (lambda batch: batch), dlrm.step
    if kind == "stock":
        # Fresh memory from the process's own allocator, so that the environment under test serves the tables too.
        state = {key: weight.clone() for key, weight in dlrm.state_dict().items()}
        del dlrm, step
        prepare, step = stock_stepper(model, state)
    print("ready", flush=True)
    for line in sys.stdin:
        prepared = prepare(source.batch(int(line)))
        begin = time.perf_counter()
        loss = step(prepared)
        print(json.dumps({"time_s": time.perf_counter() - begin, "loss": loss}), flush=True)


class Worker:
    def __init__(self, kind: str, model: str, threads: int) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)} | (BEST_ENVIRONMENT if kind == "stock" else {})
        command = [sys.executable, __file__, model, "--worker", kind, "--threads", str(threads)]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin
        assert self._process.stdout
        self._in: IO[str] = self._process.stdin
        self._out: IO[str] = self._process.stdout
        if self._out.readline().strip() != "ready":
            raise RuntimeError(f"the {kind} worker ended before it was ready")

    def step(self, number: int) -> dict[str, float]:
        print(number, file=self._in, flush=True)
        answer: dict[str, float] = json.loads(self._out.readline())
        return answer

    def close(self) -> None:
        self._in.close()
        self._process.wait()


def compare(model: str, rounds: int, threads: int) -> None:
    from autotune.bench.samples import Samples, ratio
    from autotune.units import format_time

    workers = {"ours": Worker("ours", model, threads), "stock": Worker("stock", model, threads)}
    try:
        for number in range(LOSS_STEPS):
            losses = {name: worker.step(number)["loss"] for name, worker in workers.items()}
            if abs(losses["ours"] / losses["stock"] - 1) > 1e-5:
                raise RuntimeError(f"losses differ at step {number}: {losses}")
        times: dict[str, list[float]] = {name: [] for name in workers}
        for number in range(LOSS_STEPS, LOSS_STEPS + rounds):
            order = list(workers) if number % 2 else list(workers)[::-1]
            for name in order:
                times[name].append(workers[name].step(number)["time_s"])
    finally:
        for worker in workers.values():
            worker.close()
    gain = ratio(times["stock"], times["ours"])
    ours, stock = Samples(tuple(times["ours"])), Samples(tuple(times["stock"]))
    print(
        f"{model}: ours {format_time(ours.median_s)}, stock {format_time(stock.median_s)}, "
        f"stock / ours {gain.median:.2f} [{gain.low:.2f}, {gain.high:.2f}], {gain.samples} rounds, {threads} threads",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--worker", choices=("ours", "stock"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    for model in options.models:
        if options.worker:
            work(options.worker, model, options.threads)
        else:
            compare(model, options.rounds, options.threads)


if __name__ == "__main__":
    main()
