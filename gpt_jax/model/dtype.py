"""The dtype that "auto" stands for: what the device multiplies fastest and well.

In a run it is chosen once, when that begins, and recorded; a resumed run keeps it.
"""

from __future__ import annotations

import dataclasses

from gpt_jax.config import Config, ModelConfig

BFLOAT16_CAPABILITY = 8.0  # the least of NVIDIA GPUs with matrix products in bfloat16


def choose_dtype(backend: str) -> tuple[str, str]:
    """Returns the dtype that "auto" stands for, and why.

    Without bfloat16 it is float32: float16 overflows unless the loss is scaled.

    Args:
      backend: as `target_backend` returns it.
    """
    name, _, capability = backend.partition(" ")
    if name == "tpu":
        return "bfloat16", "a TPU multiplies it fastest"
    if name != "cuda":
        return "float32", f"the fastest on {'a CPU' if name == 'cpu' else name}"
    if float(capability) < BFLOAT16_CAPABILITY:
        return "float32", f"a GPU of compute capability {capability} has no bfloat16"
    return "bfloat16", f"a GPU of compute capability {capability} multiplies it fastest"


def dtype_of(model: ModelConfig, backend: str) -> str:
    """Returns the dtype that a model computes in, "float32" or "bfloat16"."""
    return choose_dtype(backend)[0] if model.dtype == "auto" else model.dtype


def resolve_dtype(config: Config, backend: str) -> tuple[Config, tuple[str, ...]]:
    """Returns the settings with a dtype in place of "auto", and a line that says which."""
    if config.model.dtype != "auto":
        return config, ()
    dtype, reason = choose_dtype(backend)
    model = dataclasses.replace(config.model, dtype=dtype)
    return dataclasses.replace(config, model=model), (f"model.dtype=auto is {dtype}: {reason}",)


def slow_dtype(dtype: str, backend: str) -> str:
    """Returns a line where a GPU has no products in this dtype, which was asked for; else ""."""
    chosen, reason = choose_dtype(backend)
    if not backend.startswith("cuda") or dtype == chosen or chosen == "bfloat16":
        return ""
    return f"model.dtype={dtype} is slower here than {chosen}, to which it is converted: {reason}"
