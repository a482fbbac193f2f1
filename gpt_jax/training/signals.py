"""SIGINT and SIGTERM while a run has something to save: kept until a chunk of steps ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from typing import Any


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
