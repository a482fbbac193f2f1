"""The records of a run: its rows, kept as JSON lines and as TensorBoard events.

Knows files and numbers; never imports jax.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.storage import is_remote, write_atomically

FILE, EVENTS = "metrics.jsonl", "tensorboard"
TIMING_FIELDS = ("seconds", "tokens_per_second")  # what differs between two equal runs


def bits_per_byte(nats: float, n_bytes: float) -> float:
    """Returns nats in bits, for each byte of the text they were spent on: nats / ln 2 / bytes.

    It compares models whatever their tokens are.
    """
    return nats / math.log(2) / n_bytes


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """Returns a run's rows in order; a last line cut short by a kill is left out.

    Raises:
      UserError: a line other than the last is damaged.
    """
    path = run_dir / FILE
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last "\n" is not a whole row
        try:
            row = json.loads(line)
            rows.append({"step": int(row["step"]), **row})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise UserError(f"{path} is damaged at line {number}: {line[:60]!r}") from None
    return rows


class MetricsWriter:
    """Appends rows to a run's metrics.jsonl and to its TensorBoard events."""

    def __init__(self, run_dir: Path, step: int, writes: bool = True):
        """Opens a run's records to go on after `step`; rows of later steps are dropped.

        Without `writes` it only keeps the rows, as the hosts after the first do.
        """
        self.rows = [row for row in read_rows(run_dir) if row["step"] <= step] if step else []
        self._writes = writes
        if not writes:
            return
        from tensorboardX import SummaryWriter

        self._run_dir = run_dir
        write_atomically(run_dir / FILE, "".join(map(_line, self.rows)))
        folder, self._file, self._events_here = str(run_dir / EVENTS), None, None
        if is_remote(run_dir):  # nothing can be appended there: each `sync` writes all anew
            self._events_here = tempfile.TemporaryDirectory(prefix="gpt_jax_events_")
            folder = self._events_here.name
        else:
            self._file = (run_dir / FILE).open("a", encoding="utf-8")
        self._events = SummaryWriter(folder, purge_step=step + 1 if step else 0)

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row; on a disk it is in the operating system's hands when this returns."""
        self.rows.append(row)
        if not self._writes:
            return
        if self._file:
            self._file.write(_line(row))
            self._file.flush()
        for name, value in row.items():
            if name != "step" and isinstance(value, float):
                self._events.add_scalar(name, value, row["step"])

    def sync(self) -> None:
        """Puts the rows on the disk, so that no checkpoint is ever ahead of them."""
        if not self._writes:
            return
        self._events.flush()
        if self._file:
            os.fsync(self._file.fileno())
        if self._events_here:
            write_atomically(self._run_dir / FILE, "".join(map(_line, self.rows)))
            for path in Path(self._events_here.name).iterdir():
                write_atomically(self._run_dir / EVENTS / path.name, path.read_bytes())

    def close(self) -> None:
        self.sync()
        if self._writes:
            self._events.close()
            if self._file:
                self._file.close()
            if self._events_here:
                self._events_here.cleanup()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
