"""Why training stops before its last step: SIGINT, SIGTERM, or no time; and the words for it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from typing import Any

from gpt_jax.config import TrainConfig
from gpt_jax.errors import Interrupted, OutOfTime


@contextlib.contextmanager
def defer_signals(notify: Callable[[], None]) -> Generator[list[int]]:
    """Collects SIGINT and SIGTERM in the list it yields; a second one ends the program at once.

    Python handles signals in its main thread alone: in any other nothing is deferred.

    Args:
      notify: called at the first signal, to say what happens next.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    before = {s: signal.getsignal(s) or signal.SIG_DFL for s in (signal.SIGINT, signal.SIGTERM)}

    def handle(signum: int, frame: Any) -> None:
        if caught:
            signal.signal(signum, before[signal.Signals(signum)])
            signal.raise_signal(signum)
        caught.append(signum)
        notify()

    for signum in before:
        signal.signal(signum, handle)
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def interruption(signum: int, step: int, steps: int) -> Interrupted:
    """Returns what a signal raises, `step` of `steps` being saved."""
    return Interrupted(signum, f"{signal.Signals(signum).name}: {_how_to_resume(step, steps)}")


def out_of_time(step: int, train: TrainConfig) -> OutOfTime:
    """Returns what the end of `max_minutes` raises, `step` being saved."""
    return OutOfTime(f"{train.max_minutes:g} minutes are over: {_how_to_resume(step, train.steps)}")


def _how_to_resume(step: int, steps: int) -> str:
    if step == 0:
        return "stopped before the first step; run the same command to start again"
    return f"saved at step {step} of {steps}; run the same command to resume"
