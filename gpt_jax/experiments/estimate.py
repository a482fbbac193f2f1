"""What a member of a sweep would take: seconds and bytes, from steps that are run in memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from gpt_jax import numerics
from gpt_jax.console import format_duration
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.micro_batch import settle_micro_batch
from gpt_jax.training.run_setup import RunSetup

FILES_BYTES = 1 << 20  # of a run beside its checkpoints, about


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What members of one shape take.

    Attributes:
      compile_seconds: once.
      seconds: of each member, without its exact evaluation, its sample and its picture.
      n_bytes: on the disk, of each member.
    """

    compile_seconds: float
    seconds: float
    n_bytes: int


@numerics.fixed()
def estimate(setup: RunSetup) -> Estimate:
    """Runs two chunks of steps and two evaluations, of which the second are timed; writes nothing.

    Raises:
      UserError: the programs don't fit into the memory.
    """
    setup, settled = settle_micro_batch(setup)
    train = setup.config.train
    programs = settled or CompiledSteps(setup.config, setup.splits)
    try:
        began = time.monotonic()
        keys, steps = programs.keys(), programs.chunk_length(0)
        state = programs.init_state(keys)
        seconds = []
        for _ in range(2):
            before = time.monotonic()
            state, _ = jax.block_until_ready(programs.train_chunk(state, keys, 0, steps))
            middle = time.monotonic()
            np.asarray(programs.evaluate(state, keys, 0))
            seconds.append((middle - before, time.monotonic() - middle))
        (first, first_eval), (chunk, evaluation) = seconds
        compiling = middle - began - first - chunk + max(0.0, first + first_eval - chunk)
        n_state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(programs.abstract_state))
    finally:
        programs.close()
    evaluations = 1 + -(-train.steps // train.eval_interval)
    kept = train.keep_checkpoints + train.keep_best
    kept += train.steps // train.keep_interval if train.keep_interval else 0
    return Estimate(
        max(0.0, compiling),
        chunk / steps * train.steps + evaluation * evaluations,
        n_state * kept + FILES_BYTES,
    )


def estimate_text(estimates: Mapping[str, Estimate], shapes: Sequence[str]) -> list[str]:
    """Returns lines that say what members take, given the shape of each."""
    seconds = sum(estimates[shape].seconds for shape in shapes)
    seconds += sum(each.compile_seconds for each in estimates.values())
    n_bytes = sum(estimates[shape].n_bytes for shape in shapes)
    return [
        f"about {format_duration(seconds)}, exact evaluations, samples and pictures left out",
        f"about {n_bytes / 1e6:,.0f} MB on the disk",
    ]
