"""The micro-batch that "auto" stands for: the largest that fits into the devices' memory.

It is chosen when a run begins, and recorded; a resumed run chooses again only where that does not
fit any more. By the estimate of `memory.py` and by what the compiled step then needs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax

from gpt_jax.parallel.backend import target_backend
from gpt_jax.parallel.mesh import micro_batches, with_micro_batch
from gpt_jax.parallel.multihost import all_agree, all_reduce_max
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.memory import MemoryEstimate, local_need, memory_limit
from gpt_jax.training.run_setup import RunSetup

SHARE = 0.95  # of a device's memory, which the step may need: programs beside it are smaller


def choose_micro_batch(
    sizes: Sequence[int],
    limit: float | None,
    estimate: Callable[[int], MemoryEstimate],
    compiled: Callable[[int], float],
) -> int:
    """Returns the first of the sizes that fits the memory, or the last.

    Args:
      sizes: of micro-batches, the largest first.
      limit: bytes that programs may use; None: any size fits.
      estimate: from a size to the memory it needs at least: what needs more is not compiled.
      compiled: from a size to the bytes that its compiled step needs; infinite: unknown, and too
        many. As they grow by the sequence, one that is too large says which others are.
    """
    if limit is None:
        return sizes[0]
    left = [n for n in sizes if estimate(n).total <= limit]
    while left:
        n, need = left[0], compiled(left[0])
        if need <= limit:
            return n
        need = need if math.isfinite(need) else 2 * limit
        state = min(need, estimate(n).state)
        fits = [m for m in left[1:] if state + (need - state) * m / n <= limit]
        left = fits or left[1:][-1:]
    return sizes[-1]


def settle_micro_batch(setup: RunSetup) -> tuple[RunSetup, CompiledSteps | None]:
    """Returns the setup with a number in place of "auto", and the programs if it was compiled.

    All hosts call it together; the least memory of any counts.

    Raises:
      ConfigError: the mesh does not fit the devices.
    """
    if not setup.micro_batch_is_auto:
        return setup, None
    config, programs = setup.config, {}
    sizes, recorded = micro_batches(config, len(jax.devices())), config.train.micro_batch
    if setup.resumes and recorded in sizes:
        sizes = sizes[sizes.index(recorded) :]
    limit = memory_limit(jax.local_devices()[0])
    if limit is not None:
        limit = -all_reduce_max([-limit])[0]

    def compiled(n: int) -> float:
        while programs:
            programs.popitem()[1].close()
        programs[n] = CompiledSteps(with_micro_batch(config, n), setup.splits)
        return programs[n].chunk_bytes()

    def choose() -> int:
        estimate = lambda n: local_need(with_micro_batch(config, n), target_backend())
        return choose_micro_batch(sizes, limit and SHARE * limit, estimate, compiled)

    n = all_agree(choose, lambda n: {"train.micro_batch": n})
    config = with_micro_batch(config, n)
    notes = (*setup.notes, f"train.micro_batch=auto is {n:,} of {config.train.batch_size:,}")
    settled = dataclasses.replace(setup, config=config, notes=notes, micro_batch_is_auto=False)
    return settled, programs.get(n)
