"""The speed of training."""

from __future__ import annotations

import time
from collections.abc import Callable


class StepTimer:
    """Measures training: compiling is left out of every number.

    `seconds` and `tokens_per_second` are of training alone, since the last evaluation.
    `seconds_per_step` is of the whole loop, with its evaluations and checkpoints.
    """

    def __init__(self, tokens_per_step: int, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._tokens_per_step = tokens_per_step
        self.start(0)

    def start(self, step: int) -> None:
        """Begins to measure at `step`."""
        self._start_step = self._mark_step = step
        self._start = self._mark = self._clock()

    def exclude(self, seconds: float) -> None:
        """Leaves out seconds that have just passed in compiling."""
        self._start += seconds
        self._mark += seconds

    def restart(self, step: int) -> None:
        """Begins anew after an evaluation at `step`."""
        self._mark, self._mark_step = self._clock(), step
        if step == self._start_step:  # an evaluation before the first step
            self.start(step)

    def seconds(self) -> float:
        """Returns seconds of training since the last evaluation."""
        return self._clock() - self._mark

    def tokens_per_second(self, step: int) -> float:
        """Returns the speed of training since the last evaluation; `step` is the last one done."""
        tokens = (step - self._mark_step) * self._tokens_per_step
        return tokens / max(self.seconds(), 1e-9)  # a clock may not have moved

    def seconds_per_step(self, step: int) -> float | None:
        """Returns the mean since the start, `step` being the last one done; None without steps."""
        steps = step - self._start_step
        return (self._clock() - self._start) / steps if steps > 0 else None
