"""The records of a run: its rows, kept as JSON lines and as TensorBoard events.

Knows files and numbers; never imports jax.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.storage import Folder, open_folder

FILE, EVENTS = "metrics.jsonl", "tensorboard"
MAX_ROW_BYTES = 1 << 20
NUMBERS = {"loss", "grad_norm", "learning_rate", "train_loss", "val_loss", "val_bpb"}
NUMBERS |= {"tokens_per_second", "seconds", "skipped"}
OTHERS = {"numerics": dict, "changed": dict, "branch": dict, "step_losses": list}
TIMING_FIELDS = ("seconds", "tokens_per_second")  # what differs between two equal runs


def bits_per_byte(nats: float, n_bytes: float) -> float | None:
    """Converts nats to bits per byte of the text: nats / ln 2 / bytes; None without a byte.

    It compares models whatever their tokens are. Special tokens stand for no bytes.
    """
    return nats / math.log(2) / n_bytes if n_bytes else None


def read_rows(run_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns a run's rows in order; a last line cut short by a kill is dropped.

    Raises:
      UserError: a line other than the last is damaged.
    """
    folder = open_folder(run_dir)
    path = folder.path / FILE
    rows = []
    try:
        for number, line in enumerate(folder.read_lines(FILE, MAX_ROW_BYTES), 1):
            if not line.endswith(b"\n") and len(line) < MAX_ROW_BYTES:
                break  # cut short by a kill
            try:
                row = _check_row(json.loads(line.decode("utf-8")))
                if rows and row["step"] <= rows[-1]["step"]:
                    raise ValueError("its step is not after the one before")
                rows.append(row)
            except (ValueError, RecursionError):
                start = line[:60].decode("utf-8", "replace").rstrip("\n")
                raise UserError(f"{path} is damaged at line {number}: {start!r}") from None
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return rows


def _check_row(row: Any) -> dict[str, Any]:
    """Returns a row, its step first; raises ValueError where a field is of another type."""
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise ValueError("it has no step")
    if not 0 <= row["step"] < 2**63:
        raise ValueError("its step is impossible")
    for name in NUMBERS & row.keys():
        value = row[name]
        if value is None and name in (*TIMING_FIELDS, "val_bpb"):
            continue
        if type(value) is not float and (type(value) is not int or abs(value) >= 2**63):
            raise ValueError(f"its {name} is no number")
    for name, kind in OTHERS.items():
        if not isinstance(row.get(name, kind()), kind):
            raise ValueError(f"its {name} is of another type")
    if "val_loss" in row and "train_loss" not in row:
        raise ValueError("it has half an evaluation")
    return {"step": row["step"], **row}


def write_rows(run_dir: str | os.PathLike[str], rows: Iterable[dict[str, Any]]) -> None:
    """Writes all rows of a run at once."""
    open_folder(run_dir).write(FILE, "".join(map(_line, rows)))


class MetricsWriter:
    """Appends rows to a run's metrics.jsonl and to its TensorBoard events."""

    def __init__(self, run_dir: str | os.PathLike[str], step: int, writes: bool = True):
        """Opens a run's records to continue after `step`; rows of later steps are dropped.

        Without `writes` it only keeps the rows, as the hosts after the first do.
        """
        folder = open_folder(run_dir)
        self._mark: dict[str, Any] = {}
        self.rows = [row for row in read_rows(folder) if row["step"] <= step] if step else []
        self._logs: list[_RowLog | _EventLog] = []
        if writes:
            self._logs = [_RowLog(folder, self.rows), _EventLog(folder, step)]

    def mark(self, fields: dict[str, Any]) -> None:
        """Adds fields to the next row."""
        self._mark |= fields

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row; on a disk it is in the operating system's hands when this returns."""
        row, self._mark = {**row, **self._mark}, {}
        self.rows.append(row)
        for log in self._logs:
            log.write(row)

    def sync(self) -> None:
        """Puts the rows on the disk, so that no checkpoint is ever ahead of them."""
        for log in self._logs:
            log.sync()

    def close(self) -> None:
        self.sync()
        for log in self._logs:
            log.close()


class _RowLog:
    """Rows as JSON lines."""

    def __init__(self, folder: Folder, rows: Iterable[dict[str, Any]]):
        self._log = folder.append_log(FILE, "".join(map(_line, rows)))
        self.sync, self.close = self._log.sync, self._log.close

    def write(self, row: dict[str, Any]) -> None:
        self._log.write(_line(row))


class _EventLog:
    """The numbers of rows as TensorBoard events."""

    def __init__(self, folder: Folder, step: int):
        from tensorboardX import SummaryWriter

        self._files = folder.append_files(EVENTS)
        path = str(self._files.path)
        self._writer = SummaryWriter(path, purge_step=step + 1 if step else 0)

    def write(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and isinstance(value, float):
                self._writer.add_scalar(name, value, row["step"])

    def sync(self) -> None:
        self._writer.flush()
        self._files.sync()

    def close(self) -> None:
        self._writer.close()  # which waits for its thread; `flush` does not
        self._files.sync()
        self._files.close()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
