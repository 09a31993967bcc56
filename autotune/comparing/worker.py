"""A contestant in a process of its own: builds its model, then answers one line of JSON with another until its input ends.

It is a child, see `ranks.child`. The arguments are the CPUs it may use. The first line of its input says what to build; each further one
which batch to train on, and in which configuration. Whatever a library prints on standard output goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.profile import Profile


def serve(lines: Iterator[str], out: Any) -> None:
    """Answer on `out`; the first line is the order to build."""
    answer = _Contestant(json.loads(next(lines)))
    print(json.dumps({"threads": answer.threads}), file=out, flush=True)
    for line in lines:
        print(json.dumps(answer(json.loads(line))), file=out, flush=True)


class _Contestant:
    def __init__(self, order: dict[str, Any]) -> None:
        import torch

        from autotune.comparing.peers import OWN
        from autotune.config.model import Changes
        from autotune.data.batches import make_source
        from autotune.dlrm.defaults import default_config
        from autotune.dlrm.model import DLRM
        from autotune.machine.topology import detect

        model, topology = Model.model_validate(order["model"]), detect()
        self._ours = order["kind"] == OWN
        self.threads = topology.default_threads()
        self._configs = {name: RunConfig.model_validate(config) for name, config in order["configs"].items()}
        self._source = make_source(model)
        # A peer's weights come from ours in fp32, which are the same to the bit: in bf16, `state_dict` would join halves into a third copy.
        built = model if self._ours else model.changed(Changes(dtype="fp32"))
        default = default_config(built, topology)
        self._configs["default"] = default
        dlrm = DLRM(built, default, machine=topology)
        if self._ours:
            self._dlrm: Any = dlrm
            self._prepare: Any = lambda batch: batch
            self._train: Any = dlrm.step
        else:
            from autotune.comparing.models import BUILDERS

            state = dict(dlrm.state_dict())
            del dlrm
            peer = BUILDERS[order["kind"]](model, state)
            self._prepare, self._train = peer.prepare, peer.step
            # As the user of stock PyTorch has it: what its environment says, else all cores.
            torch.set_num_threads(self.threads)

    def __call__(self, order: dict[str, Any]) -> dict[str, Any]:
        if "profile" in order:
            return self._bounds(Profile.model_validate(order["profile"]))
        prepared = self._prepare(self._source.batch(order["batch"]))
        if self._ours:
            self._dlrm.configure(self._configs[order["config"]])
        begin_s = time.perf_counter()
        loss = self._train(prepared)
        return {"time_s": time.perf_counter() - begin_s, "loss": loss}

    def _bounds(self, profile: Profile) -> dict[str, Any]:
        """The least seconds of every pass of ours, by the ceilings of a profile."""
        from autotune.perf.roofline import Hardware, limits

        threads = self._configs["default"].threads
        hardware = Hardware.of(profile, threads, self._dlrm.model.dtype)
        operators = self._dlrm.operators(self._source)
        bounds = {each.key: limits(each.work(), profile.ceilings, threads, warm=True, hardware=hardware).bound_s for each in operators}
        return {"bounds_s": bounds}


def main() -> None:
    """Errors end the process with a line on standard error."""
    os.sched_setaffinity(0, map(int, sys.argv[1:]))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(iter(sys.stdin), out)
