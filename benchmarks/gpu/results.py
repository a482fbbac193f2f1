"""Reads the results that one or more calls of gpu_run.sh left, for the summary. No jax."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclasses.dataclass
class Call:
    """What one call of gpu_run.sh recorded.

    Attributes:
      header: when it began, its parts and budget; {} in files of earlier versions.
      rows: figures, each with `what`.
      steps: how each step ended.
    """

    header: Row
    rows: list[Row] = dataclasses.field(default_factory=list)
    steps: list[Row] = dataclasses.field(default_factory=list)

    def of(self, what: str, *, part: int | None = None) -> list[Row]:
        """Returns the rows of a kind that are neither errors nor skipped."""
        return [
            row
            for row in self.rows
            if row["what"] == what
            and "error" not in row
            and "skipped" not in row
            and part in (None, row.get("part"))
        ]


def read_calls(text: str) -> list[Call]:
    """Returns the calls of a file of results; an incomplete line is left out."""
    calls: list[Call] = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "call" in row or not calls:
            calls.append(Call(row if "call" in row else {}))
        if "what" in row:
            calls[-1].rows.append(row)
        elif "step" in row:
            calls[-1].steps.append(row)
    return calls


def read_files(paths: Sequence[str | Path]) -> list[Call]:
    """Returns the calls in files of results, or in the results.jsonl of folders.

    Raises:
      SystemExit: one can't be read.
    """
    calls = []
    for path in map(Path, paths):
        file = path / "results.jsonl" if path.is_dir() else path
        try:
            calls += read_calls(file.read_text("utf-8", errors="replace"))
        except OSError as error:
            raise SystemExit(f"error: {file}: {error.strerror}") from None
    return calls
