"""Units encoded by an existing engine, on one machine or many: an optional extra.

The engine is datatrove (https://github.com/huggingface/datatrove), which FineWeb was made with: a
pipeline runs in processes of this machine, on a Slurm cluster or on Ray. It needs a folder that all
machines see, as encoded units do anyway.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

from data.encode import encode_unit, end_with, open_work
from data.sources.documents import EXTRAS
from gpt_jax.errors import TrainingError, UserError
from gpt_jax.input_pipeline.shards.memmap import WORK_FOLDER

MAX_TASKS = 1000  # the engine keeps files for each


@dataclasses.dataclass(frozen=True)
class Parts:
    """A step of a datatrove pipeline: task `rank` of `world_size` encodes its share of the units.

    Attributes:
      work: the folder `.prepare` of a corpus whose plan exists (`--engine plan`).
      n_units: number of units in the plan.
      first: the first unit to encode.
    """

    work: str
    n_units: int
    first: int = 0

    @classmethod
    def of(cls, out: str) -> Parts:
        """Returns the step for the corpus `out`, whose plan exists."""
        work = Path(out).absolute() / WORK_FOLDER
        return cls(str(work), len(open_work(str(work))[1]))

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        _end_with_parent()
        for number in range(self.first + rank, self.n_units, world_size):
            encode_unit(self.work, number)


def _end_with_parent() -> None:
    """Ends this process, if it is one of an engine's on this machine, when its parent does."""
    if processes := sys.modules.get("multiprocess.process"):
        end_with(processes.parent_process())


@contextlib.contextmanager
def _managers_that_end() -> Generator[None]:
    """Inside, the process that datatrove's queues live in ends with this one, too."""
    package: Any = importlib.import_module("multiprocess")
    managers: Any = importlib.import_module("multiprocess.managers")
    original = package.Manager

    def start() -> Any:
        manager = managers.SyncManager()
        manager.start(_end_with_parent)
        return manager

    package.Manager = start
    try:
        yield
    finally:
        package.Manager = original


def run_datatrove(work: Path, first: int, n_units: int, workers: int) -> None:
    """Encodes the units from `first` on with datatrove's processes on this machine.

    Raises:
      UserError: datatrove is not installed, or a unit is damaged, and `on_damage` is "stop".
      TrainingError: a task failed for another reason.
    """
    try:
        executor = importlib.import_module("datatrove.executor")
    except ModuleNotFoundError:
        raise UserError(f"--engine datatrove needs the package datatrove: {EXTRAS}") from None
    try:
        pipeline = executor.LocalPipelineExecutor(
            pipeline=[Parts(str(work), n_units, first)],
            tasks=min(n_units - first, MAX_TASKS),
            workers=workers,
            logging_dir=str(work / "datatrove"),
            skip_completed=False,  # units that are encoded already return at once
        )
        with _managers_that_end():
            pipeline.run()
    except (UserError, TrainingError):
        raise
    except Exception as error:  # engines raise many kinds
        detail = " ".join(str(error).split())
        raise TrainingError(f"datatrove failed: {type(error).__name__}: {detail:.300}") from error
