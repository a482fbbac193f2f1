"""Checkpoints: written by orbax, in the background, and trusted only with their sha256 manifest.

A checkpoint is a folder `checkpoints/STEP` that orbax commits whole, and beside it a manifest
`STEP.json` with the size and sha256 of every file in it, written last and removed first. A folder
without a manifest is what a kill left behind: it is never read and is cleared on the next start.
(Orbax itself loads a checkpoint with a flipped bit without any error.)
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from gpt_jax.errors import UserError, is_out_of_memory
from gpt_jax.run.folder import CHECKPOINTS as FOLDER
from gpt_jax.run.folder import FORMAT, changed_settings, read_id, read_settings
from gpt_jax.run.manifest import best_step as best_step
from gpt_jax.run.manifest import checkpoint_name, describe_files, is_step
from gpt_jax.run.manifest import manifest_path as manifest_path
from gpt_jax.run.manifest import path_of as path_of
from gpt_jax.run.manifest import problem as problem
from gpt_jax.run.manifest import steps as steps
from gpt_jax.storage import open_folder


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
        keep_step: int | None = None,
    ):
        """Clears what a kill left behind.

        Args:
          run_dir: the run's folder.
          keep_newest: how many of the newest checkpoints stay.
          keep_interval: checkpoints at multiples of this many steps stay too.
          keep_best: the one with the lowest validation loss stays too.
          keep_step: so does that of this step, with which a branch begins.
        """
        self._run = open_folder(open_folder(run_dir).absolute())
        self._keep_newest = keep_newest
        self._keep_interval, self._keep_best = keep_interval, keep_best
        self._keep_step = keep_step
        self._worker = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future | None = None
        self._is_first = jax.process_index() == 0  # which alone clears, and writes manifests
        if not self._is_first:
            return
        self._id = read_id(self._run)
        with self._run.errors():
            self._run.make_folder(FOLDER)
        self._run.remove_unfinished(rf"{FOLDER}/\d+\.json")
        whole = set(steps(self._run))
        for path in self._run.entries(FOLDER):
            step = int(path.name) if is_step(path.name) else None
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
            self._run.inside(FOLDER)  # orbax would follow a link
            # One copy: to slice each array among the devices costs one compiled program per array.
            context = ocp.Context()
            context.array_options.saving.use_replica_parallel = False
            with context, self._run.errors():
                response = ocp.save_async(str(path), state, custom_metadata={"config": config})
        except (OSError, ValueError) as error:
            raise self._failed(error) from error
        self._pending = self._worker.submit(self._commit, step, response, val_loss)

    def _commit(self, step: int, response: Any, val_loss: float | None) -> None:
        response.result()
        if not self._is_first:
            return
        name = checkpoint_name(step)
        manifest = {"format": FORMAT, "step": step, "val_loss": val_loss}
        if self._id is not None:
            manifest["run"] = self._id
        manifest["files"] = describe_files(self._run, name)
        if not manifest["files"]:
            raise FileNotFoundError(f"{name} is not there any more")
        self._run.write(f"{name}.json", json.dumps(manifest, indent=1) + "\n")
        older = [other for other in steps(self._run) if other < step]
        stay: set[int | None] = {self._keep_step}
        stay |= set(older[max(0, len(older) - self._keep_newest + 1) :])
        if self._keep_interval:
            stay |= {other for other in older if other % self._keep_interval == 0}
        if self._keep_best:
            stay |= {best_step(self._run)}
        for old in older:
            if old not in stay:
                self._remove(old)

    def _remove(self, step: int) -> None:
        self._run.remove(f"{checkpoint_name(step)}.json")
        self._run.remove(checkpoint_name(step))

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
    """Loads a checkpoint's tree or, where `partial`, the subtrees that target has of it.

    What it says of itself is compared with where it lies: its settings before loading, its step
    after that.
    """
    ocp = _import_orbax()
    path = path_of(run_dir, step)
    open_folder(run_dir).check(checkpoint_name(step))  # orbax would follow a link
    context = ocp.Context()
    context.pytree_options.loading.partial_load = partial
    try:
        # A load that fails halfway leaves orbax's tasks behind, which complain at exit. A partial
        # one does not fail where a name is missing: it returns what it was given.
        about = ocp.metadata(str(path))
        saved = about.metadata
        if partial:
            target = {**target, **_step_target(saved, target)}
            saved = {name: saved[name] for name in target}
        if _shapes(saved) != _shapes(target):
            raise ValueError("its arrays have other names or shapes")
        _check_same_run(about.custom_metadata, run_dir)
        with context:
            loaded = ocp.load(str(path), target)
        _check_step(loaded, step)
    except Exception as error:  # orbax raises many kinds; all mean the same to a user
        if is_out_of_memory(error):
            raise
        detail = " ".join(str(error).split())[:300]
        raise CheckpointError(f"checkpoint {path} does not fit its config: {detail}") from error
    if partial:
        loaded.pop("step", None)
    # Loaded arrays may share memory with the reader; donation needs arrays that jax owns.
    leaves, tree = jax.tree.flatten(loaded)
    del loaded
    for i, leaf in enumerate(leaves):  # one by one, so that two states are never in memory at once
        leaves[i] = _copy_out_of_shared_memory(leaf)
    return jax.tree.unflatten(tree, leaves)


def _step_target(saved: Any, target: Any) -> dict[str, Any]:
    """Returns what to load of a state's step beside its parameters, if it has one."""
    leaves = jax.tree.leaves(target)
    if "step" not in saved or not leaves:
        return {}
    sharding = leaves[0].sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        sharding = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return {"step": jax.ShapeDtypeStruct((), saved["step"].dtype, sharding=sharding)}


def _check_step(loaded: Any, step: int) -> None:
    """Raises ValueError where a state, or part of one, is that of another step."""
    is_part = isinstance(loaded, dict) and set(loaded) == {"params", "step"}
    found = loaded["step"] if is_part else getattr(loaded, "step", None)
    if found is not None and int(found) != step:
        raise ValueError(f"its state is that of step {int(found)}")


def _check_same_run(metadata: Any, run_dir: str | os.PathLike[str]) -> None:
    """Raises ValueError where a checkpoint was saved with settings that its run never had."""
    theirs = metadata.get("config") if isinstance(metadata, dict) else None
    ours = read_settings(run_dir)
    if isinstance(theirs, dict) and ours and (lines := changed_settings(ours, theirs)):
        raise ValueError(f"it is that of another run: {'; '.join(lines)}")


def _copy_out_of_shared_memory(array: jax.Array) -> jax.Array:
    return jax.block_until_ready(jax.device_put(array, array.sharding, may_alias=False))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array by its path, whatever nodes the tree is made of."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
