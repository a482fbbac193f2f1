"""The runs of a trial: their settings, their seeds, and how each is trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpt_jax.config import Config, override
from gpt_jax.errors import Diverged
from gpt_jax.experiments.budgets import CHANGE, SIDES, Budget, Runner
from gpt_jax.experiments.members import ONE_CHECKPOINT
from gpt_jax.experiments.outcomes import Pair
from gpt_jax.experiments.trees import Tree, check_unchanged, train_in_tree
from gpt_jax.run.folder import read_summary
from gpt_jax.run.metrics import TIMING_FIELDS, read_rows
from gpt_jax.storage import Folder, open_folder, to_folder
from gpt_jax.training.trackers import TRACKERS_FILE, TrackedRuns


def side_config(
    config: Config,
    change: Mapping[str, Any],
    side: str,
    seed: int,
    run_dir: str,
    budget: Budget | None = None,
) -> Config:
    """Returns the settings of a run of a trial; raises ConfigError where they break a rule."""
    own: dict[str, Any] = {**ONE_CHECKPOINT, "seed": seed, "run_dir": run_dir}
    if budget is not None:
        own["train.steps"] = budget.steps(side)
    return override(config, {**(change if side == CHANGE else {}), **own})


def sides_of(config: Config, change: Mapping[str, Any], budget: Budget | None) -> dict[str, Config]:
    """Returns the settings of each side, those of its first run."""
    return {side: side_config(config, change, side, config.seed, "x", budget) for side in SIDES}


def pair_configs(
    folder: Path,
    config: Config,
    change: Mapping[str, Any],
    budget: Budget | None,
    seeds: tuple[int, int],
) -> dict[str, Config]:
    """Returns the settings of both runs of a pair, whose folders lie in the trial's."""
    return {
        side: side_config(config, change, side, seed, str(folder / f"{side}-{seed}"), budget)
        for side, seed in zip(SIDES, seeds, strict=True)
    }


def seeds_of(index: int, first: int, *, paired: bool) -> tuple[int, int]:
    """Returns the seeds of both runs of a pair."""
    if paired:
        return first + index, first + index
    return first + 2 * index, first + 2 * index + 1


def runner(
    folder: Folder, trees: Mapping[str, Tree] | None, tracked: TrackedRuns | None = None
) -> Runner:
    """Returns what trains a run of a side, here or by its tree, and returns its figures.

    Trackers are told of a run of a tree once it has ended.
    """

    def here(side: str, config: Config) -> tuple[float, str | None]:
        from gpt_jax.training.trainer import train

        tell = {}
        if tracked and tracked.names:
            tell["on_row"] = functools.partial(tracked.on_row, config.run_dir)
        return _figures(lambda: train(config, quiet=True, **tell), config)

    def by_tree(side: str, config: Config) -> tuple[float, str | None]:
        assert trees is not None
        check_unchanged({side: trees[side]}, folder)
        file = folder.path / f"{side}.py"
        figures = _figures(lambda: train_in_tree(trees[side], config, file), config)
        if tracked and not open_folder(config.run_dir).has(TRACKERS_FILE):
            for row in read_rows(to_folder(config.run_dir)):
                tracked.on_row(config.run_dir, row)
        return figures

    def run(side: str, config: Config) -> tuple[float, str | None]:
        figures = by_tree(side, config) if trees else here(side, config)
        if tracked:
            tracked.on_end(config.run_dir)
        return figures

    return run


def _figures(train: Callable[[], Any], config: Config) -> tuple[float, str | None]:
    """Trains a run; returns its exact loss, or the untrained one and why it diverged."""
    run_dir = to_folder(config.run_dir)
    try:
        train()
    except Diverged as error:
        first = [row["val_loss"] for row in read_rows(run_dir) if "val_loss" in row][:1]
        if not first:
            raise
        return first[0], str(error)
    return float(read_summary(run_dir)["val"]["nats_per_token"]), None


def run_pair(
    folder: Folder,
    config: Config,
    change: Mapping[str, Any],
    budget: Budget | None,
    seeds: tuple[int, int],
    run: Runner,
    say: Callable[[str], None],
) -> Pair:
    """Trains both runs of a pair, or what is missing of them, and returns their figures."""
    losses, diverged, run_dirs = [], [], []
    for side, own in pair_configs(folder.path, config, change, budget, seeds).items():
        run_dirs.append(to_folder(own.run_dir))
        say(f"{side}, seed {own.seed}")
        loss, why = run(side, own)
        losses.append(loss)
        diverged.append(why)
    equal = not any(diverged) and seeds[0] == seeds[1] and are_equal(*run_dirs)
    return Pair(list(seeds), losses[0], losses[1], diverged[0], diverged[1], equal)


def are_equal(a: Path, b: Path) -> bool:
    """Says whether every loss of two runs is equal to the last bit."""
    rows = [
        [{k: v for k, v in row.items() if k not in TIMING_FIELDS} for row in read_rows(run_dir)]
        for run_dir in (a, b)
    ]
    exact = [read_summary(run_dir).get("val") for run_dir in (a, b)]
    return rows[0] == rows[1] and exact[0] == exact[1]
