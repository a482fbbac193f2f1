"""The mesh of devices, and how parameters and batches lie on it; the model knows nothing of either.

There is one path for every machine: a laptop's single device is a 1x1x1x1 mesh. Along `data` and
`fsdp` devices have sequences of their own, along `sequence` tokens of the same ones; along `fsdp`
and `tensor` they have parts of the parameters and of what the optimizer keeps. XLA adds what they
must tell one another: a layer's parameters are gathered over `fsdp` when it is computed
(Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, stage 3), heads and the MLP's width stay
apart over `tensor` (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053), and over `sequence` all
tokens of some heads are exchanged for some tokens of all heads around attention, so that it sees
whole sequences (Jacobs et al. 2023, https://arxiv.org/abs/2309.14509).
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.sharding import PartitionSpec as P

from gpt_jax.devices import largest_divisor
from gpt_jax.errors import ConfigError

BOTH = ("fsdp", "tensor")

# (parameter path, how it is laid out): the first match counts. Arrays of blocks begin with the
# layer. Vocabularies are odd (73, 50,257), so tokens are split along their width.
PARAMETER_RULES: tuple[tuple[str, P], ...] = (
    (r"tokens/embedding|positions", P(None, BOTH)),
    (r"blocks/attn/qkv/kernel|blocks/mlp/(gate|up)/kernel", P(None, "fsdp", "tensor")),
    (r"blocks/attn/qkv/bias|blocks/mlp/(gate|up)/bias", P(None, "tensor")),
    (r"blocks/(attn/proj|mlp/down)/kernel", P(None, "tensor", "fsdp")),
    (r"head/kernel", P(BOTH, None)),
    # Small ones are copied to every device.
    (r"blocks/(norm_1|norm_2)/(scale|bias)|norm_f/(scale|bias)", P()),
    (r"blocks/attn/(q_norm|k_norm)/scale", P()),
    (r"blocks/(attn/proj|mlp/down)/bias|head/bias|head_bias", P()),
    (r"ns_coeffs", P()),  # three numbers that optax keeps in Muon's state
)
# Which axes of the mesh share an axis of activations; see `sharding.py`.
ACTIVATION_RULES = {
    "batch": ("data", "fsdp"),
    "time": ("sequence",),
    "heads": ("tensor", "sequence"),
    "width": ("tensor",),
}


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns how an array lies whose axis `axis` is the batch: split over the devices."""
    return NamedSharding(mesh, P(*[None] * axis, ("data", "fsdp")))


def to_global_array(array: np.ndarray | jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts an array that every host has on devices, of other hosts too."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    here = np.asarray(array)
    return jax.make_array_from_callback(here.shape, sharding, here.__getitem__)


def mesh_context(mesh: Mesh, *, kernels: bool = False) -> contextlib.AbstractContextManager:
    """Returns the context in which to trace what computes the model on a mesh.

    Where parameters or sequences are split, the model pins some layouts (`layers.lay`), and for
    that the mesh is in force. Kernels that XLA can't split (`attention.needs_mesh`) want it on any
    several devices.
    """
    if mesh.size > mesh.shape["data"] or (kernels and mesh.size > 1):
        return jax.set_mesh(mesh)
    return contextlib.nullcontext()


def make_constrain_batch(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that splits a batch (B, T + 1) over the devices, by its first axis.

    A batch in parts, (parts, B / parts, T + 1), has each of its parts split so.
    """
    return lambda batch: jax.lax.with_sharding_constraint(
        batch, batch_sharding(mesh, axis=batch.ndim - 2)
    )


def state_shardings(state, mesh: Mesh):
    """Returns a tree like `state` of how each leaf lies on the mesh, by `PARAMETER_RULES`.

    The optimizer's moments carry their parameter's path as a suffix, and so its rule; scalars are
    copied to every device.

    Raises:
      ValueError: no rule names a leaf; the message gives its path and shape.
      ConfigError: a leaf's size is not divisible by the devices that are to share it.
    """

    def sharding(path, leaf):
        if not leaf.shape:
            return replicated(mesh)
        name = "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
        for pattern, spec in PARAMETER_RULES:
            if re.search(rf"(^|/)({pattern})$", name):
                _check_divisible(name, leaf.shape, spec, mesh)
                return NamedSharding(mesh, spec)
        raise ValueError(f"no sharding rule names the parameter {name} of shape {leaf.shape}")

    return jax.tree_util.tree_map_with_path(sharding, state)


def _check_divisible(name: str, shape: tuple[int, ...], spec: P, mesh: Mesh) -> None:
    for size, axes in zip(shape, spec, strict=False):
        names = [axes] if isinstance(axes, str) else list(axes or ())
        n = math.prod(mesh.shape[axis] for axis in names)
        if size % n:
            shown = " x ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in names)
            raise ConfigError(
                f"{shown}: {n} devices can't share {name} of shape {shape}, as {size} is not "
                f"divisible by {n}; try {largest_divisor(size, n - 1)}, or mesh.data"
            )


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Returns x, laid out over the devices of the mesh in force; without one, x as it is.

    XLA works out most layouts from those of the parameters. Left alone, it may gather the batch
    where it should gather a layer's parameters, so the few arrays that decide are pinned.

    Args:
      x: any array.
      *axes: for each of its axes "batch", "time", "heads" or "width" (of the MLP, or of all heads
        together); the rest are not split. Where heads are split, time is whole: the devices that
        share it elsewhere share the heads.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(ACTIVATION_RULES[a] for a in axes)))


def axis_size(axis: str) -> int:
    """Returns how many devices of the mesh in force share an axis that `constrain` knows."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(name, 1) for name in ACTIVATION_RULES[axis])
