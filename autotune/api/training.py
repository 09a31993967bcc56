"""Training whose weights are written at the end, and in one process also when Ctrl-C, SIGTERM or a bad row ends it early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.errors import AutotuneError
from autotune.ranks import interrupt

if TYPE_CHECKING:
    from autotune.dlrm.train import Training

OnStep = Callable[[int, float], None]


def train_and_save(train: Callable[[OnStep], Training], on_step: OnStep, save: Callable[[int], None], path: Path) -> Training:
    """Train in one process, and save the weights of the last whole step, also where a signal or an error of ours ends it.

    Ctrl-C and SIGTERM wait for the end of the step, or of the writing; a second one does not, and then nothing is written.

    Args:
        train: does it, and calls what it is given with step and loss after each.
        on_step: called the same way.
        save: writes the weights after so many steps.
        path: where, for the messages.

    Raises:
        AutotuneError, KeyboardInterrupt: what ended it; the message also says what was kept.
    """
    steps, failed = 0, None
    with interrupt.at_boundaries() as boundary:

        def count(step: int, loss: float) -> None:
            nonlocal steps
            steps = step + 1
            on_step(step, loss)
            boundary.check()

        try:
            training = train(count)
        except KeyboardInterrupt:
            if not boundary.reached:  # in the middle of a step some weights are updated and others are not
                raise
        except AutotuneError as error:
            if not steps:
                raise
            failed = error
        save(steps)
        kept = f"the weights after {steps} steps are in {path}"
        if failed is not None:
            raise type(failed)(f"{failed}; {kept}") from failed
        if boundary.held:
            raise boundary.held(kept)
    return training
