"""One PRNG key for each purpose, all derived from one seed, or some from seeds of their own.

The key's implementation and its bits are named here, so nothing in the environment changes them
(`numerics.fixed` keeps what remains: how many bits are drawn at once).
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

IMPLEMENTATION = "threefry2x32"  # Salmon et al. 2011, as jax has it


class Keys(flax.struct.PyTreeNode):
    """One PRNG key for each purpose; a step's key is `fold_in(key, step)`.

    So randomness is a function of (seed, purpose, step), and resuming needs the step alone.
    """

    init: jax.Array
    data: jax.Array
    dropout: jax.Array
    eval: jax.Array
    sample: jax.Array


def make_key(seed: int | jax.Array) -> jax.Array:
    """Returns the key of a seed in [0, 2**32), as `jax.random.key` does by default.

    That one also takes the default implementation and an offset from the environment.
    """
    words = jnp.stack([jnp.uint32(0), jnp.asarray(seed, jnp.uint32)])
    return jax.random.wrap_key_data(words, impl=IMPLEMENTATION)


def make_keys(
    seed: int | jax.Array,
    init_seed: int | jax.Array | None = None,
    data_seed: int | jax.Array | None = None,
    dropout_seed: int | jax.Array | None = None,
) -> Keys:
    """Returns the keys of a seed in [0, 2**32); those of three purposes may be another seed's."""

    def keys_of(seed: int | jax.Array) -> Keys:
        init, data, dropout, evaluate, sample = jax.random.split(make_key(seed), 5)
        return Keys(init=init, data=data, dropout=dropout, eval=evaluate, sample=sample)

    keys = keys_of(seed)
    of_purposes = {"init": init_seed, "data": data_seed, "dropout": dropout_seed}
    others = {k: getattr(keys_of(s), k) for k, s in of_purposes.items() if s is not None}
    return keys.replace(**others)
