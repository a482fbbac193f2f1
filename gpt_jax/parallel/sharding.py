"""Which array is split along which axis of the device mesh: two tables, and what applies them.

Logical axes are what the axes of an array mean: "batch", "time", "heads", "width" of an activation,
or the path and the position of a parameter's axis, as `blocks/mlp/up/kernel` (layer, in, out).
Physical axes are those of the mesh (`mesh.py`): data, fsdp, tensor, sequence. The tables map the
first to the second, and nothing else in the program does; the model names logical axes only.

    ACTIVATION_RULES   logical axis of an activation -> axes of the mesh that split it
    PARAMETER_RULES    path of a parameter -> a PartitionSpec: for each of its axes, those that
                       split it, or None

What results is, by axis of the mesh:

    data      data parallel: a separate part of the batch on each device, a copy of the parameters
    fsdp      fully sharded data parallel: the batch is split as over data, and parameters,
              gradients and optimizer state are split too; a layer's parameters are all-gathered
              when it is computed (Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054,
              stage 3)
    tensor    tensor parallel: attention heads and the MLP's width (Shoeybi et al. 2019,
              https://arxiv.org/abs/1909.08053)
    sequence  sequence parallel: the tokens of each sequence; around attention an all-to-all
              exchanges them for heads, so that attention sees whole sequences (Jacobs et al. 2023,
              https://arxiv.org/abs/2309.14509)

XLA inserts the collectives. Every machine takes the same path: one device is a 1x1x1x1 mesh.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt_jax.config import MeshConfig
from gpt_jax.devices import largest_divisor
from gpt_jax.errors import ConfigError

# Logical axis of an activation -> the axes of the mesh that split it. A logical axis that is not
# here is not split. Heads take `sequence` too: where heads are split, time is whole.
ACTIVATION_RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "time": ("sequence",),
    "heads": ("tensor", "sequence"),
    "width": ("tensor",),  # of the MLP, or of all heads together
}

# Path of a parameter -> its PartitionSpec; the first match counts. The arrays of blocks begin with
# the axis of layers. Vocabularies are odd (73, 50,257), so embeddings are split along their width:
# over tensor first, so that what fsdp gathers of it is contiguous, see `GPT`.
PARAMETER_RULES: tuple[tuple[str, P], ...] = (
    (r"tokens/embedding|positions", P(None, ("tensor", "fsdp"))),
    (r"blocks/attn/qkv/kernel|blocks/mlp/(gate|up)/kernel", P(None, "fsdp", "tensor")),
    (r"blocks/attn/qkv/bias|blocks/mlp/(gate|up)/bias", P(None, "tensor")),
    (r"blocks/(attn/proj|mlp/down)/kernel", P(None, "tensor", "fsdp")),
    (r"head/kernel", P(("tensor", "fsdp"), None)),
    # Small ones are replicated.
    (r"blocks/(norm_1|norm_2)/(scale|bias)|norm_f/(scale|bias)", P()),
    (r"blocks/attn/(q_norm|k_norm)/scale", P()),
    (r"blocks/(attn/proj|mlp/down)/bias|head/bias|head_bias", P()),
    (r"ns_coeffs", P()),  # three numbers that optax keeps in Muon's state
)


def activation_spec(*axes: str) -> P:
    """Returns the PartitionSpec of an activation whose first axes have these logical names."""
    return P(*(ACTIVATION_RULES[axis] for axis in axes))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding of an array whose axis `axis` is the batch, and no other is split."""
    return NamedSharding(mesh, P(*[None] * axis, *activation_spec("batch")))


def to_global_array(array: np.ndarray | jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts an array that every host has in full on the devices of all hosts.

    One that is there already, in shares, stays as it is.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    if spans_hosts(array):
        return jax.device_put(array, sharding)  # nothing moves where it has this sharding
    here = np.asarray(array)
    return jax.make_array_from_callback(here.shape, sharding, here.__getitem__)


def spans_hosts(tree: Any) -> bool:
    """Returns whether arrays of a tree lie on devices of other hosts, too.

    What computes with them is computed by all hosts together.
    """
    leaves = (x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))
    return not all(x.is_fully_addressable for x in leaves)


def to_host(array: jax.Array) -> np.ndarray:
    """Returns an array whole, on every host; all call it where it is split over hosts."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)


def params_axes(params: Any) -> MeshConfig:
    """Returns the axes of a mesh that split a tree of parameters, and -1 for data."""
    for leaf in jax.tree.leaves(params):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and {"fsdp", "tensor"} <= sharding.mesh.shape.keys():
            return MeshConfig(
                fsdp=sharding.mesh.shape["fsdp"], tensor=sharding.mesh.shape["tensor"]
            )
    return MeshConfig()


def mesh_context(mesh: Mesh, *, kernels: bool = False) -> contextlib.AbstractContextManager:
    """Returns the context in which to trace a function that computes the model on a mesh.

    It sets the mesh where parameters or sequences are split, for `constrain`, and on more than one
    device for kernels that XLA can't split by itself (`attention.needs_mesh`).
    """
    if mesh.size > mesh.shape["data"] or (kernels and mesh.size > 1):
        return jax.set_mesh(mesh)
    return contextlib.nullcontext()


def make_constrain_batch(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that constrains a batch (B, T + 1) to be split over the devices.

    Of a batch in n micro-batches, (n, B / n, T + 1), each micro-batch is split.
    """
    return lambda batch: jax.lax.with_sharding_constraint(
        batch, batch_sharding(mesh, axis=batch.ndim - 2)
    )


def state_shardings(state, mesh: Mesh):
    """Returns a tree like `state` with the sharding of each leaf, by `PARAMETER_RULES`.

    The path of an optimizer's moment ends in that of its parameter, so one rule serves both.
    Scalars are replicated.

    Raises:
      ValueError: no rule names a leaf; the message gives its path and shape.
      ConfigError: the size of an axis is not divisible by the devices that split it.
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
    """Returns x, constrained to the sharding of its logical axes; without a mesh, x itself.

    XLA derives most shardings from those of the parameters. Alone, it may gather the batch where
    it should gather a layer's parameters, so the model constrains the few arrays that decide.

    Args:
      x: any array.
      *axes: logical names of its first axes, keys of ACTIVATION_RULES; later axes are not split.
    """
    if not is_split():
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(*axes))


def is_split() -> bool:
    """Returns whether XLA splits what is traced here over a mesh, see `mesh_context`."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and len(mesh.manual_axes) < len(mesh.axis_names)


def make_map_over_data(
    mesh: Mesh, *, whole_params: bool = False
) -> Callable[[Callable], Callable] | None:
    """Returns a transform of the gradient accumulation of a step; None where it can't be.

    It is for function(params, micro_batches, key, first_row), which returns the mean loss over the
    rows of micro-batches (n, B / n, T + 1) and its gradient. Each device of the axes data and fsdp
    calls it with its own rows of every micro-batch, and their means are averaged over the devices
    at the end. So gradients are reduced once a step. Left to XLA, they are in each micro-batch.

    Over fsdp that needs whole_params: a device gathers all parameters, once a step, and holds the
    gradient of all until it is reduce-scattered. The axes tensor and sequence must have one device:
    they split what XLA has to gather in between.
    """
    is_alone = mesh.shape["tensor"] * mesh.shape["sequence"] == 1
    if mesh.size == 1 or not is_alone or (mesh.shape["fsdp"] > 1 and not whole_params):
        return None
    axes = ACTIVATION_RULES["batch"]

    def transform(function: Callable) -> Callable:
        def mapped(params, micro_batches, key):
            is_sharded = mesh.shape["fsdp"] > 1
            specs = jax.tree.map(
                lambda s: s.spec if is_sharded else P(), state_shardings(params, mesh)
            )

            def on_each_device(params, micro_batches, key):
                first_row = jax.lax.axis_index(axes) * micro_batches.shape[1]
                whole = jax.tree.map(_gather_shards, params, specs)
                loss, grads = function(whole, micro_batches, key, first_row)
                grads = jax.tree.map(lambda x, spec: _reduce_to_shards(x, spec, mesh), grads, specs)
                return jax.lax.pmean(loss, axes), grads

            # Unchecked, a gradient stays the device's own; checked, jax sums it where it is made.
            return jax.shard_map(
                on_each_device,
                mesh=mesh,
                in_specs=(specs, P(None, axes), P()),
                out_specs=(P(), specs),
                check_vma=False,
            )(params, micro_batches, key)

        return mapped

    return transform


def _fsdp_axis(spec: P) -> int | None:
    """Returns the axis of a parameter that the axis fsdp of the mesh splits; None: none of them."""
    names = [(axes,) if isinstance(axes, str) else axes or () for axes in spec]
    return next((i for i, axes in enumerate(names) if "fsdp" in axes), None)


def _gather_shards(x: jax.Array, spec: P) -> jax.Array:
    axis = _fsdp_axis(spec)
    return x if axis is None else jax.lax.all_gather(x, "fsdp", axis=axis, tiled=True)


def _reduce_to_shards(x: jax.Array, spec: P, mesh: Mesh) -> jax.Array:
    """Returns the mean of x over the axes data and fsdp; of a split parameter's, the shard."""
    axis = _fsdp_axis(spec)
    if axis is None:
        return jax.lax.pmean(x, ("data", "fsdp"))
    shard = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=axis, tiled=True)
    return jax.lax.pmean(shard, "data") / mesh.shape["fsdp"]


def axis_size(axis: str) -> int:
    """Returns into how many parts the current mesh splits a logical axis; 1 without a mesh."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(name, 1) for name in ACTIVATION_RULES[axis])
