"""What training asks of its process: that no other trains the same run, and that signals wait."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.files import is_remote


@contextlib.contextmanager
def lock(run_dir: Path, doing: str = "trained") -> Generator[None]:
    """Keeps a second process from training the same run, or from doing else in a folder."""
    try:
        import fcntl
    except ImportError:  # Windows
        fcntl = None
    if fcntl is None or is_remote(run_dir):  # a bucket has no locks
        yield
        return
    try:
        file = (run_dir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"run_dir {run_dir} is not writable: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run_dir} is being {doing} by another process") from None
        except OSError:
            pass  # a file system without locks
        yield


@contextlib.contextmanager
def catch_signals(say: Callable[[str], None]) -> Generator[list[int]]:
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
