"""Parts made by an existing engine, on one machine or many: an optional extra.

The engine is datatrove (https://github.com/huggingface/datatrove), which FineWeb was made with: one
pipeline runs in processes of this machine, on a Slurm cluster or on Ray. Ray alone would bring a
cluster of its own to run; datatrove needs a folder that all machines see, as the parts do anyway.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from data.encode import encode_unit, open_work
from data.sources.documents import EXTRAS
from gpt_jax.errors import TrainingError, UserError
from gpt_jax.input_pipeline.shards.memmap import WORK_FOLDER

MAX_TASKS = 1000  # an engine's bookkeeping for each


@dataclasses.dataclass(frozen=True)
class Parts:
    """A step of a datatrove pipeline: task `rank` of `world_size` makes its share of the parts.

    Attributes:
      work: the folder `.prepare` of a corpus whose plan is made (`--engine plan`).
      n_units: of the plan.
      first: parts before are done with.
    """

    work: str
    n_units: int
    first: int = 0

    @classmethod
    def of(cls, out: str) -> Parts:
        """Returns the step for the corpus `out`, whose plan is made."""
        work = Path(out).absolute() / WORK_FOLDER
        return cls(str(work), len(open_work(str(work))[1]))

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        for number in range(self.first + rank, self.n_units, world_size):
            encode_unit(self.work, number)


def run_datatrove(work: Path, first: int, n_units: int, workers: int) -> None:
    """Makes the parts from `first` on with datatrove's processes on this machine.

    Raises:
      UserError: datatrove is not installed, or a unit is damaged, and damage is to stop.
      TrainingError: a task failed for another reason.
    """
    try:
        executor = importlib.import_module("datatrove.executor")
    except ModuleNotFoundError:
        raise UserError(f"--engine datatrove needs the package datatrove: {EXTRAS}") from None
    try:
        executor.LocalPipelineExecutor(
            pipeline=[Parts(str(work), n_units, first)],
            tasks=min(n_units - first, MAX_TASKS),
            workers=workers,
            logging_dir=str(work / "datatrove"),
            skip_completed=False,  # parts say themselves that they are there
        ).run()
    except (UserError, TrainingError):
        raise
    except Exception as error:  # whatever an engine comes up with
        detail = " ".join(str(error).split())
        raise TrainingError(f"datatrove failed: {type(error).__name__}: {detail:.300}") from error
