"""What training asks of its process: that no other trains the same run, and that signals wait."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from typing import Any


@contextlib.contextmanager
def defer_signals(say: Callable[[str], None]) -> Generator[list[int]]:
    """Collects SIGINT and SIGTERM in the list it yields; a second one ends the program at once."""
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
        say("stopping after these steps; once more to stop at once")

    for signum in before:
        signal.signal(signum, handle)
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
