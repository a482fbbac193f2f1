"""The texts that a run wrote: a short one at each evaluation, and those of the end.

samples.jsonl has a line for each of the first, samples.txt has the others. Never imports jax.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator

from gpt_jax.errors import UserError
from gpt_jax.run.folder import SAMPLES_FILE
from gpt_jax.storage import Folder, open_folder, read_record

FILE = "samples.jsonl"
MAX_LINE_BYTES = 1 << 20
_HEADING = re.compile(r"^=== step (\d{1,18}), prompt .*, corpus .* ===\n", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A text.

    Attributes:
      step: whose parameters wrote it.
      text: with its prompt.
    """

    step: int
    text: str


def read_samples(run_dir: str | os.PathLike[str]) -> list[Sample]:
    """Returns a run's texts by their steps; [] where it has none.

    Raises:
      UserError: a file is damaged.
    """
    folder = open_folder(run_dir)
    found = [*read_short_samples(folder)]
    last = max((sample.step for sample in found), default=-1)
    found += [sample for sample in _final_samples(folder) if sample.step > last]
    return sorted(found, key=lambda sample: sample.step)


def read_short_samples(folder: Folder) -> Iterator[Sample]:
    """Yields the texts of evaluations; one that was cut short by a kill is dropped.

    Raises:
      UserError: the file is damaged.
    """
    if not folder.has(FILE):
        return
    path = folder.path / FILE
    try:
        for line in folder.read_lines(FILE, MAX_LINE_BYTES):
            if line.endswith(b"\n"):  # else it was cut short by a kill
                yield read_record(json.loads(line.decode("utf-8")), Sample)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _final_samples(folder: Folder) -> Iterator[Sample]:
    if not folder.has(SAMPLES_FILE):
        return
    try:
        text = folder.read_text(SAMPLES_FILE)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.path / SAMPLES_FILE} is damaged: {error}") from error
    _, *parts = _HEADING.split(text)
    for step, written in zip(parts[::2], parts[1::2], strict=True):
        yield Sample(int(step), written.strip("\n"))
