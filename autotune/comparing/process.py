"""The parent's end of a contestant's process."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.profile import Profile
from autotune.errors import MachineError
from autotune.ranks.child import command_line, start

_END_S = 5.0


class ContestantError(MachineError):
    """A contestant's process ended; the message has its last words. Where it is ours, there is nothing to compare with."""


class Contestant:
    """A process that trains one model on demand; it ends with the block it is used in.

    Args:
        kind: of a `Peer`.
        model: what it trains.
        configs: of ours, by name, beside the default.
        environment: it starts in.
        cpus: it may use. A process inherits those of the thread that starts it, and OpenMP has bound that one to a single core.

    Raises:
        ContestantError: it could not build the model.
    """

    def __init__(
        self, kind: str, model: Model, configs: Mapping[str, RunConfig], environment: Mapping[str, str], cpus: Sequence[int]
    ) -> None:
        self.kind = kind
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = start(
            command_line("autotune.comparing.worker", *map(str, cpus)),
            environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        dumped = {name: config.model_dump(mode="json") for name, config in configs.items()}
        try:
            self.threads = int(self._ask({"kind": kind, "model": model.model_dump(mode="json"), "configs": dumped})["threads"])
        except BaseException:
            self._end(at_once=True)
            raise

    @property
    def ended(self) -> bool:
        """Whether its process has ended."""
        return self._process.poll() is not None

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end(at_once=error is not None)

    def step(self, batch: int, config: str) -> tuple[float, float]:
        """Train on a batch: seconds and loss. Raises: ContestantError: the process ended."""
        answer = self._ask({"batch": batch, "config": config})
        return answer["time_s"], answer["loss"]

    def bounds(self, profile: Profile) -> dict[str, float]:
        """Least seconds of every pass by the ceilings of a profile; of ours only."""
        bounds: dict[str, float] = self._ask({"profile": profile.model_dump(mode="json", by_alias=True)})["bounds_s"]
        return bounds

    def _ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        try:
            print(json.dumps(order), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):
            raise ContestantError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        words = f": {lines[-1]}" if lines else ""
        return f"the process of {self.kind} must run to its end, got code {code}{words}; look for the reason there, or free memory"

    def _end(self, at_once: bool) -> None:
        if at_once:
            self._process.kill()
        if self._process.stdin and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()
