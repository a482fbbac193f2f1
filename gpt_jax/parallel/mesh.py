"""The device mesh: the axes data, fsdp, tensor and sequence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from gpt_jax.config import MeshConfig
from gpt_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor", "sequence")


def make_mesh(
    batch_size: int,
    devices: Sequence[jax.Device] | None = None,
    sizes: MeshConfig = MeshConfig(),  # noqa: B008, frozen
    kv_heads: int = 1,
    block_size: int = 1,
) -> Mesh:
    """Returns a mesh of (data, fsdp, tensor, sequence) devices.

    Args:
      batch_size: sequences that data x fsdp devices share evenly.
      devices: None is all there are.
      sizes: of the axes; by default as many devices as divide the batch, all on the data axis.
      kv_heads: that tensor x sequence devices share evenly.
      block_size: tokens of a sequence, that devices on the sequence axis share evenly.

    Raises:
      ConfigError: there are too few devices, or they can't share the batch; or a host has none.
    """
    devices = jax.devices() if devices is None else devices
    shape = sizes.spread(batch_size, len(devices), kv_heads, block_size)
    # Auto: XLA places what is not said; Explicit, jax's default, is not for linen's layers.
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    used = devices[: math.prod(shape)]
    if idle := {d.process_index for d in devices} - {d.process_index for d in used}:
        raise ConfigError(
            f"a batch of {batch_size} at once uses {len(used)} of {len(devices)} devices, and host "
            f"{min(idle)} has none of them; use a multiple of {len(devices)}"
        )
    return Mesh(np.array(used).reshape(shape), AXES, axis_types=types)
