"""Checkpoints: written by orbax, in the background, and trusted only with their sha256 manifest.

A checkpoint is a folder `checkpoints/STEP` that orbax commits whole, and beside it a manifest
`STEP.json` with the size and sha256 of every file in it, written last and removed first. A folder
without a manifest is what a kill left behind: it is never read and is cleared on the next start.
(Orbax itself loads a checkpoint with a flipped bit without any error.)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from gpt_jax.errors import UserError, is_out_of_memory
from gpt_jax.run.folder import FORMAT
from gpt_jax.storage import files_below, open_folder, read_json

FOLDER = "checkpoints"


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or can't be written."""


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time, and removes those that need not stay."""

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        keep_newest: int,
        keep_interval: int | None = None,
        keep_best: bool = False,
    ):
        """Clears what a kill left behind.

        Args:
          run_dir: the run's folder.
          keep_newest: how many of the newest checkpoints stay.
          keep_interval: checkpoints at multiples of this many steps stay too.
          keep_best: the one with the lowest validation loss stays too.
        """
        self._run = open_folder(open_folder(run_dir).absolute())
        self._keep_newest = keep_newest
        self._keep_interval, self._keep_best = keep_interval, keep_best
        self._worker = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future | None = None
        self._is_first = jax.process_index() == 0  # which alone clears, and writes manifests
        if not self._is_first:
            return
        with self._run.errors():
            (self._run.path / FOLDER).mkdir(exist_ok=True)
        whole = set(steps(self._run))
        for path in self._run.entries(FOLDER):
            step = int(path.name) if path.name.isdigit() else None
            ours = step is not None or ".orbax-checkpoint-tmp" in path.name
            if ours and path.is_dir() and step not in whole:
                self._run.remove(f"{FOLDER}/{path.name}")

    def save(
        self, step: int, state: Any, config: dict[str, Any], val_loss: float | None = None
    ) -> None:
        """Starts saving a tree of arrays; returns once the arrays may be overwritten (donated).

        Args:
          step: optimizer steps behind the state.
          state: the tree.
          config: saved beside it, for human readers.
          val_loss: of an evaluation at this step, in nats per token, if there was one.

        Raises:
          CheckpointError: this save could not start, or the one before it failed.
        """
        ocp = _import_orbax()
        self.wait()
        path = path_of(self._run, step)
        try:
            # A checkpoint of this step that failed its manifest may still be there.
            if self._is_first:  # orbax's hosts wait for it
                self._remove(step)
            # One copy: to slice each array among the devices costs one compiled program per array.
            context = ocp.Context()
            context.array_options.saving.use_replica_parallel = False
            with context, self._run.errors():
                response = ocp.save_async(str(path), state, custom_metadata={"config": config})
        except (OSError, ValueError) as error:
            raise self._failed(error) from error
        self._pending = self._worker.submit(self._commit, path, step, response, val_loss)

    def _commit(self, path: Path, step: int, response: Any, val_loss: float | None) -> None:
        response.result()
        if not self._is_first:
            return
        manifest = {"format": FORMAT, "step": step, "val_loss": val_loss}
        manifest["files"] = describe_files(path)
        if not manifest["files"]:
            raise FileNotFoundError(f"{path} is not there any more")
        name = f"{FOLDER}/{manifest_path(path).name}"
        self._run.write(name, json.dumps(manifest, indent=1) + "\n")
        older = [other for other in steps(self._run) if other < step]
        stay: set[int | None] = set(older[max(0, len(older) - self._keep_newest + 1) :])
        if self._keep_interval:
            stay |= {other for other in older if other % self._keep_interval == 0}
        if self._keep_best:
            stay |= {best_step(self._run)}
        for old in older:
            if old not in stay:
                self._remove(old)

    def _remove(self, step: int) -> None:
        path = path_of(self._run, step)
        with self._run.errors():
            manifest_path(path).unlink(missing_ok=True)
        self._run.remove(f"{FOLDER}/{path.name}")

    def wait(self) -> None:
        """Waits until the current save is complete.

        Raises:
          CheckpointError: it failed; the checkpoints before it are untouched.
        """
        pending, self._pending = self._pending, None
        try:
            if pending:
                pending.result()
        except Exception as error:  # orbax raises many kinds
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"cannot save a checkpoint in {self._run.path / FOLDER}: {error}; the last valid one "
            f"is {max(steps(self._run), default='none')}"
        )

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._worker.shutdown()


def _import_orbax() -> Any:
    """Returns orbax's module, imported when it is needed: that takes time."""
    from orbax.checkpoint import v1 as ocp

    logging.getLogger("absl").addFilter(_is_not_orbaxs)
    return ocp


def _is_not_orbaxs(record: logging.LogRecord) -> bool:
    """Hides orbax's tracebacks from users: its errors come as a CheckpointError."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def path_of(run_dir: str | os.PathLike[str], step: int) -> Path:
    """Returns the absolute path of a step's checkpoint."""
    return open_folder(run_dir).absolute() / FOLDER / f"{step:08d}"


def manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def describe_files(path: Path) -> dict[str, dict[str, Any]]:
    """Returns {relative path: {"bytes", "sha256"}} for every file below a folder."""
    files = {}
    for file in files_below(path):
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
            n_bytes = opened.tell()
        name = file.relative_to(path).as_posix()
        files[name] = {"bytes": n_bytes, "sha256": digest}
    return files


def steps(run_dir: str | os.PathLike[str]) -> list[int]:
    """Returns the steps of a run's checkpoints, ascending, valid or not."""
    names = (path.stem for path in open_folder(run_dir).entries(FOLDER) if path.suffix == ".json")
    return sorted(int(name) for name in names if name.isdigit())


def best_step(run_dir: str | os.PathLike[str]) -> int | None:
    """Returns the step of the checkpoint with the lowest validation loss; None where none has one.

    Of equal ones it is the first.
    """
    losses = {}
    for step in steps(run_dir):
        try:
            manifest = read_json(manifest_path(path_of(run_dir, step)))
            losses[step] = float(manifest["val_loss"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # without one, or damaged
    return min(losses, key=lambda step: losses[step], default=None)


def problem(path: Path) -> str:
    """Returns what is wrong with a checkpoint, by its manifest; "" where it is valid."""
    try:
        manifest = read_json(manifest_path(path))
        written, expected = manifest["format"], manifest["files"]
        if written > FORMAT:
            return f"written by a newer gpt_jax (format {written}; this one reads {FORMAT})"
        if not expected:
            return "its manifest names no files"
        found = describe_files(path)
        for name in sorted({*expected, *found}):
            if name not in found:
                return f"{name} is missing"
            if name not in expected:
                return f"{name} does not belong to it"
            if found[name] != expected[name]:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest can't be read ({error})"
    return ""


def restore(
    run_dir: str | os.PathLike[str], target: Any, candidates: Sequence[int] | None = None
) -> tuple[int, Any, list[str]]:
    """Loads the newest valid checkpoint of a run.

    Args:
      run_dir: the run's folder.
      target: a tree of jax.ShapeDtypeStruct with shardings: what to load, and onto which devices.
      candidates: the steps, ascending, of those that will do; None for all.

    Returns:
      (its step, the state, one message for each newer checkpoint that is damaged); step 0 and None
      for the state where nothing has been saved yet.

    Raises:
      CheckpointError: there are checkpoints and none is valid, or the valid one does not fit.
      JaxRuntimeError: the memory is too small for it.
    """
    step, messages = newest_valid(run_dir, candidates)
    return step, load(run_dir, step, target) if step else None, messages


def newest_valid(
    run_dir: str | os.PathLike[str], candidates: Sequence[int] | None = None
) -> tuple[int, list[str]]:
    """Returns the step of the newest valid checkpoint, 0 without any, and messages; see `restore`.

    Raises:
      CheckpointError: there are checkpoints and none is valid.
    """
    messages = []
    for step in reversed(steps(run_dir) if candidates is None else candidates):
        if found := problem(path_of(run_dir, step)):
            messages.append(f"checkpoint {path_of(run_dir, step)} is damaged: {found}")
        else:
            return step, messages
    if messages:
        raise CheckpointError("; ".join(messages) + "; no valid checkpoint remains")
    return 0, []


def load(run_dir: str | os.PathLike[str], step: int, target: Any) -> Any:
    """Returns the whole state of a valid checkpoint; see `restore`."""
    return _load(run_dir, step, target)


def load_params(run_dir: str | os.PathLike[str], step: int, target: Any) -> Any:
    """Returns the parameters of a valid checkpoint; the optimizer's state is not read.

    Args:
      run_dir: the run's folder.
      step: of the checkpoint.
      target: tree of jax.ShapeDtypeStruct with shardings, as the model's parameters.

    Raises:
      CheckpointError: the parameters do not fit.
      JaxRuntimeError: the memory is too small for them.
    """
    return _load(run_dir, step, {"params": target}, partial=True)["params"]


def _load(run_dir: str | os.PathLike[str], step: int, target: Any, partial: bool = False) -> Any:
    """Loads a checkpoint's tree or, where `partial`, the subtrees that target has of it."""
    ocp = _import_orbax()
    path = path_of(run_dir, step)
    context = ocp.Context()
    context.pytree_options.loading.partial_load = partial
    try:
        # A load that fails halfway leaves orbax's tasks behind, which complain at exit. A partial
        # one does not fail where a name is missing: it returns what it was given.
        saved = ocp.metadata(str(path)).metadata
        if partial:
            saved = {name: saved[name] for name in target}
        if _shapes(saved) != _shapes(target):
            raise ValueError("its arrays have other names or shapes")
        with context:
            loaded = ocp.load(str(path), target)
    except Exception as error:  # orbax raises many kinds; all mean the same to a user
        if is_out_of_memory(error):
            raise
        detail = " ".join(str(error).split())[:300]
        raise CheckpointError(f"checkpoint {path} does not fit its config: {detail}") from error
    # Loaded arrays may share memory with the reader; donation needs arrays that jax owns.
    leaves, tree = jax.tree.flatten(loaded)
    del loaded
    for i, leaf in enumerate(leaves):  # one by one, so that two states are never in memory at once
        leaves[i] = _copy_out_of_shared_memory(leaf)
    return jax.tree.unflatten(tree, leaves)


def _copy_out_of_shared_memory(array: jax.Array) -> jax.Array:
    return jax.block_until_ready(jax.device_put(array, array.sharding, may_alias=False))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array by its path, whatever nodes the tree is made of."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
