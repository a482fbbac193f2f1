"""What runs would take: seconds and bytes, from steps that are run in memory, alone or together."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import jax

from gpt_jax import numerics
from gpt_jax.config import Config
from gpt_jax.console import format_duration
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.micro_batch import settle_micro_batch
from gpt_jax.training.run_setup import RunSetup, prepare_beside
from gpt_jax.training.stack import Arrangement, Stack
from gpt_jax.training.state import state_shapes

FILES_BYTES = 1 << 20  # of a run beside its checkpoints, about


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What runs of one shape take.

    Attributes:
      compile_seconds: once.
      seconds: of each run, without its exact evaluation, its sample and its picture.
      n_bytes: on the disk, of each run.
    """

    compile_seconds: float
    seconds: float
    n_bytes: int


@dataclasses.dataclass(frozen=True)
class _Programs:
    """What is measured: each function runs a program and returns arrays to wait for.

    Attributes:
      chunk: takes `steps` steps.
      evaluate: evaluates both splits.
      steps: of a chunk.
      n_runs: that take them at once.
    """

    chunk: Callable[[], Any]
    evaluate: Callable[[], Any]
    steps: int
    n_runs: int


@numerics.fixed()
def step_seconds(setup: RunSetup, arrangement: Arrangement | None = None) -> float:
    """Returns the seconds that a step takes, over the runs that take it together.

    Two chunks of steps are run in memory, and the second is timed; nothing is written.

    Args:
      setup: of any of the runs.
      arrangement: how they are stacked; None is one run on all devices.

    Raises:
      UserError: the programs don't fit into the memory, or such runs can't be stacked.
    """
    with _programs(setup, arrangement) as programs:
        return _timed(programs.chunk)[1] / programs.steps / programs.n_runs


@numerics.fixed()
def estimate(setup: RunSetup, arrangement: Arrangement | None = None) -> Estimate:
    """Runs two chunks of steps and two evaluations, of which the second are timed; writes nothing.

    For arguments and errors see `step_seconds`.
    """
    train = setup.config.train
    with _programs(setup, arrangement) as programs:
        compiling, chunk = _timed(programs.chunk)
        compiling_too, evaluation = _timed(programs.evaluate)
    evaluations = 1 + -(-train.steps // train.eval_interval)
    seconds = chunk / programs.steps * train.steps + evaluation * evaluations
    state = state_shapes(setup.config.model, setup.config.optim)
    n_state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    kept = train.keep_checkpoints + train.keep_best
    kept += train.steps // train.keep_interval if train.keep_interval else 0
    n_bytes = n_state * kept + FILES_BYTES
    return Estimate(compiling + compiling_too, seconds / programs.n_runs, n_bytes)


@contextlib.contextmanager
def _programs(setup: RunSetup, arrangement: Arrangement | None) -> Generator[_Programs]:
    """Yields what is measured, and frees its memory."""
    if arrangement is not None:
        stack = Stack(setup, arrangement)
        steps = min(setup.config.train.chunk_steps, setup.config.train.steps)
        with contextlib.closing(stack):
            yield _Programs(
                lambda: stack.train_chunk(steps), lambda: stack.evaluate(0), steps, stack.n_slots
            )
        return
    setup, settled = settle_micro_batch(setup)
    alone = settled or CompiledSteps(setup.config, setup.splits)
    with contextlib.closing(alone):
        keys, steps = alone.keys(), alone.chunk_length(0)
        state = alone.init_state(keys)

        def chunk() -> Any:
            nonlocal state
            state, metrics = alone.train_chunk(state, keys, 0, steps)
            return metrics

        yield _Programs(chunk, lambda: alone.evaluate(state, keys, 0), steps, 1)


def _timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Returns the seconds that compiling took in the first of two calls, and those of the second.

    The chunk before is waited for: its state is what the second starts from.
    """
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        jax.block_until_ready(function())
        seconds.append(time.monotonic() - began)
    return max(0.0, seconds[0] - seconds[1]), seconds[1]


def estimate_text(estimates: Iterable[Estimate], runs: Sequence[Estimate]) -> list[str]:
    """Returns lines that say what runs take.

    Args:
      estimates: of each shape.
      runs: that of each run, one after another.
    """
    seconds = sum(each.seconds for each in runs) + sum(each.compile_seconds for each in estimates)
    n_bytes = sum(each.n_bytes for each in runs)
    return [
        f"about {format_duration(seconds)}, exact evaluations, samples and pictures left out",
        f"about {n_bytes / 1e6:,.0f} MB on the disk",
    ]


def runs_text(configs: Sequence[Config], n: int) -> list[str]:
    """Returns lines that say what n runs of each of these settings take, one after another.

    Raises:
      UserError: one can't be prepared, or does not fit into the memory.
    """
    setup: RunSetup | None = None
    estimates = []
    for config in configs:
        same = setup is not None and setup.config.data.corpus == config.data.corpus
        setup = prepare_beside(config, setup if same else None)
        estimates.append(estimate(setup))
    return estimate_text(estimates, [each for each in estimates for _ in range(n)])
