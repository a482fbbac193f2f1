"""The mesh of devices, and how parameters and batches lie on it; the model knows nothing of either.

There is one path for every machine: a laptop's single device is a 1x1x1 mesh.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt_jax.devices import largest_divisor

AXES = ("data", "fsdp", "tensor")

# (parameter path, how it is laid out): the first match counts. Every parameter is copied to every
# device so far; the batch alone is split.
RULES: tuple[tuple[str, P], ...] = (
    (r"tokens/embedding|positions", P()),
    (r"blocks/(norm_1|norm_2)/(scale|bias)|norm_f/(scale|bias)", P()),
    (r"blocks/attn/(qkv|proj)/(kernel|bias)|blocks/attn/(q_norm|k_norm)/scale", P()),
    (r"blocks/mlp/(gate|up|down)/(kernel|bias)", P()),
    (r"head/(kernel|bias)|head_bias", P()),
    (r"ns_coeffs", P()),  # three numbers that optax keeps in Muon's state
)


def make_mesh(batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of as many devices as divide the batch evenly, all on the data axis."""
    devices = jax.devices() if devices is None else devices
    n = largest_divisor(batch_size, len(devices))
    # Auto: XLA places what is not said; Explicit, jax's default, is not for linen's layers.
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    return Mesh(np.array(devices[:n]).reshape(n, 1, 1), AXES, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns how an array lies whose axis `axis` is the batch: split over the devices."""
    return NamedSharding(mesh, P(*[None] * axis, ("data", "fsdp")))


def make_place_batch(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that splits a batch (B, T + 1) over the devices, by its first axis.

    A batch in parts, (parts, B / parts, T + 1), has each of its parts split so.
    """
    return lambda batch: jax.lax.with_sharding_constraint(
        batch, batch_sharding(mesh, axis=batch.ndim - 2)
    )


def state_shardings(state, mesh: Mesh):
    """Returns a tree like `state` of how each leaf lies on the mesh, by `RULES`.

    The optimizer's moments carry their parameter's path as a suffix, and so its rule; scalars are
    copied to every device.

    Raises:
      ValueError: no rule names a leaf; the message gives its path and shape.
    """

    def sharding(path, leaf):
        if not leaf.shape:
            return replicated(mesh)
        name = "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
        for pattern, spec in RULES:
            if re.search(rf"(^|/)({pattern})$", name):
                return NamedSharding(mesh, spec)
        raise ValueError(f"no sharding rule names the parameter {name} of shape {leaf.shape}")

    return jax.tree_util.tree_map_with_path(sharding, state)
