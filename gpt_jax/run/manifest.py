"""The manifest of a checkpoint: what it is and the sums of its files, against which it is checked.

A checkpoint is a folder `checkpoints/STEP`, its manifest `checkpoints/STEP.json` beside it.
Everything there may have been changed, renamed or packed by somebody else: what a manifest says of
its step and its run is compared with where it lies, and nothing is read through a link.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from gpt_jax.errors import UserError
from gpt_jax.run.folder import CHECKPOINTS, FORMAT, read_id
from gpt_jax.storage import Folder, LinkError, open_folder, read_versioned


@dataclasses.dataclass(frozen=True)
class FileSum:
    """The size and sum of one file."""

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Attributes:
      format: of the run folder.
      step: optimizer steps behind the checkpoint.
      files: {path in the checkpoint's folder: its size and sum}.
      val_loss: nats per token, of an evaluation at this step; None where there was none.
      run: the id of its run; None in those of earlier releases.
    """

    format: int
    step: int
    files: dict[str, FileSum]
    val_loss: float | None = None
    run: str | None = None


def checkpoint_name(step: int) -> str:
    """Returns the name of a step's checkpoint in a run's folder; its manifest's has .json more."""
    return f"{CHECKPOINTS}/{step:08d}"


def path_of(run_dir: str | os.PathLike[str], step: int) -> Path:
    """Returns the absolute path of a step's checkpoint."""
    return open_folder(run_dir).absolute() / checkpoint_name(step)


def manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def steps(run_dir: str | os.PathLike[str]) -> list[int]:
    """Returns the steps of a run's checkpoints, ascending, valid or not.

    Raises:
      LinkError: the folder of its checkpoints is a symbolic link.
    """
    paths = open_folder(run_dir).entries(CHECKPOINTS)
    return sorted(int(path.stem) for path in paths if path.suffix == ".json" and is_step(path.stem))


def is_step(name: str) -> bool:
    """Says whether a name is that of a step's checkpoint, as `checkpoint_name` writes it."""
    return name.isascii() and name.isdecimal() and len(name) < 19 and f"{int(name):08d}" == name


def read_manifest(run_dir: str | os.PathLike[str], step: int) -> Manifest:
    """Returns the manifest of a step.

    Raises:
      OSError: it can't be read.
      ValueError: it is damaged.
      LinkError: it is reached through a link.
    """
    values = open_folder(run_dir).read_json(f"{checkpoint_name(step)}.json")
    manifest = read_versioned(values, Manifest, FORMAT)
    if manifest.val_loss is not None and not math.isfinite(manifest.val_loss):
        raise ValueError(f"val_loss is {manifest.val_loss}, which no checkpoint has")
    return manifest


def best_step(
    run_dir: str | os.PathLike[str], evaluations: Mapping[int, float] | None = None
) -> int | None:
    """Returns the step of the checkpoint with the lowest validation loss; None where none has one.

    Of equal ones it is the first.

    Args:
      run_dir: the run's folder.
      evaluations: the validation loss at each step, which the manifests must agree with.

    Raises:
      UserError: one does not.
    """
    losses: dict[int, float] = {}
    for step in steps(run_dir):
        try:
            manifest = read_manifest(run_dir, step)
        except (OSError, ValueError, LinkError):
            continue  # damaged
        if manifest.val_loss is not None and manifest.step == step:
            losses[step] = manifest.val_loss
    for step, loss in (evaluations or {}).items():
        if losses.get(step, loss) != loss:
            raise UserError(
                f"{manifest_path(path_of(run_dir, step))} is damaged: its val_loss is "
                f"{losses[step]:g}, and {loss:g} in the run's rows"
            )
    return min(losses, key=lambda step: losses[step], default=None)


def describe_files(folder: Folder, name: str) -> dict[str, dict[str, Any]]:
    """Returns {relative path: {"bytes", "sha256"}} for every file below a folder in a run's.

    Raises:
      LinkError: there is anything but files and folders.
    """
    files = {}
    root = folder.inside(name)
    for file in folder.files(name):
        with folder.open(file) as opened:
            digest = hashlib.file_digest(cast(Any, opened), "sha256").hexdigest()
            n_bytes = opened.tell()
        files[file.relative_to(root).as_posix()] = {"bytes": n_bytes, "sha256": digest}
    return files


def problem(path: Path) -> str:
    """Returns what is wrong with a checkpoint, by its manifest; "" where it is valid."""
    folder, step = open_folder(path.parent.parent), int(path.name)
    try:
        manifest = read_manifest(folder, step)
        wrong = _wrong_place(manifest, folder, step)
    except (OSError, ValueError, LinkError) as error:
        return f"its manifest can't be read ({error})"
    if wrong:
        return wrong
    try:
        found = describe_files(folder, checkpoint_name(step))
    except (OSError, LinkError) as error:
        return f"it can't be read ({error})"
    for name in sorted({*manifest.files, *found}):
        if name not in found:
            return f"{name} is missing"
        if name not in manifest.files:
            return f"{name} does not belong to it"
        if found[name] != dataclasses.asdict(manifest.files[name]):
            return f"{name} has changed since it was written"
    return ""


def _wrong_place(manifest: Manifest, folder: Folder, step: int) -> str:
    """Returns why a manifest is not that of a run's step, or ''."""
    if not manifest.files:
        return "its manifest names no files"
    if manifest.step != step:
        return f"its manifest is that of step {manifest.step}; give both their names back"
    if manifest.run != read_id(folder):
        return "its manifest is that of another run; put it back there"
    return ""
