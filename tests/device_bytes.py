"""The bytes that devices hold while a model is evaluated or sampled."""

import collections
import math

import jax

from gpt_jax.inference import decoding, evaluation


def most_on_a_device() -> int:
    """Returns the bytes of all arrays on the device that has most."""
    on = collections.Counter()
    for x in jax.live_arrays():
        share = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        on.update(dict.fromkeys(x.devices(), share))
    return max(on.values(), default=0)


def watch(patch, see):
    """Each batch of an evaluation and each call of the decoder calls see(name, bytes) before it.

    Args:
      patch: as `setattr`.
      see: is told which, "evaluate" or "sample", and `most_on_a_device()`.
    """

    def wrap(module, attribute, name):
        original = getattr(module, attribute)

        def watching(*args, **kwargs):
            see(name, most_on_a_device())
            return original(*args, **kwargs)

        patch(module, attribute, watching)

    wrap(evaluation, "mesh_context", "evaluate")
    wrap(decoding, "decode", "sample")
