"""Compiling for devices that may only be described, and what their compilers say of memory."""

from __future__ import annotations

import os
import re

from gpt_jax.errors import UserError

# With these XLA gives each product to cuBLAS and chooses no kernel by a stopwatch, as there is no
# GPU to run them on.
WITHOUT_GPU = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
# The share of a GPU's memory that jax takes, by its documentation; and one that leaves enough to
# CUDA, with which benchmarks/gpu has run.
GPU_SHARE, LARGE_GPU_SHARE = 0.75, 0.92
SHARE_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def compile_options(backend: str, described: bool) -> dict[str, bool | int] | None:
    """Returns XLA's options to compile for a backend; None: the usual ones."""
    return WITHOUT_GPU if described and backend.startswith("cuda") else None


def bytes_asked_for(message: str) -> float:
    """Returns the bytes that a TPU's compiler says the program needs, or 0."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1) if found else 0


def gpu_share() -> float:
    """Returns the share of a GPU's memory that programs get, which the environment may set.

    Raises:
      UserError: it is no share.
    """
    for name in SHARE_VARIABLES:
        if value := os.environ.get(name, ""):
            try:
                share = float(value)
            except ValueError:
                share = 0.0
            if not 0 < share <= 1:
                raise UserError(f"{name}={value} must be above 0 and at most 1; unset it")
            return share
    return GPU_SHARE
