"""A Python script in a process of its own, which ends with the one that started it.

The script's process has one end of a pipe that nobody writes to, and ends when the other end is
closed. The system closes it when the process that holds it is gone, also by kill -9. Nothing is
saved then: a run continues from its last checkpoint.

This file is also what runs there, `python -P child.py SCRIPT [...]`. So it imports nothing of this
package: the script may belong to another checkout.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def start(script: str | os.PathLike[str], *words: str, **how: Any) -> Generator[subprocess.Popen]:
    """Starts `python SCRIPT WORDS`; what is left of it on leaving ends.

    Its standard input is empty.

    Args:
      script: a file.
      words: its arguments.
      how: more arguments of `subprocess.Popen`.
    """
    theirs, ours = os.pipe()  # no other process inherits either
    try:
        command = [sys.executable, "-P", __file__, os.fspath(script), *words]
        child = subprocess.Popen(command, stdin=theirs, **how)
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    try:
        yield child
    finally:
        os.close(ours)
        child.wait()


def _run_script() -> None:
    """Runs the script that the command line names, as Python itself would."""
    pipe, empty = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    del sys.argv[0]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


def _end_with(pipe: int) -> None:
    os.read(pipe, 1)
    os._exit(1)


if __name__ == "__main__":
    _run_script()
