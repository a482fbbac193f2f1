"""One PRNG key for each purpose, all derived from one seed."""

from __future__ import annotations

import flax.struct
import jax


class Keys(flax.struct.PyTreeNode):
    """One PRNG key for each purpose, all from one seed; a step's key is `fold_in(key, step)`.

    So randomness is a function of (seed, purpose, step), and resuming needs the step alone.
    """

    init: jax.Array
    data: jax.Array
    dropout: jax.Array
    eval: jax.Array
    sample: jax.Array


def make_keys(seed: int) -> Keys:
    """Returns the keys of a seed in [0, 2**32)."""
    init, data, dropout, evaluate, sample = jax.random.split(jax.random.key(seed), 5)
    return Keys(init=init, data=data, dropout=dropout, eval=evaluate, sample=sample)
