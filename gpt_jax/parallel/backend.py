"""The backend that a program is compiled for: this machine's, or one that a plan describes."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Generator

import jax

from gpt_jax.devices import asks_for_determinism

_planned: contextvars.ContextVar[str | None] = contextvars.ContextVar("planned", default=None)


@contextlib.contextmanager
def compiling_for(backend: str) -> Generator[None]:
    """Makes `target_backend` return this backend, for what is traced inside the context."""
    token = _planned.set(backend)
    try:
        yield
    finally:
        _planned.reset(token)


def must_be_deterministic() -> bool:
    """Returns whether programs are compiled for a GPU and must be bitwise reproducible."""
    return target_backend().startswith("cuda") and asks_for_determinism()


def target_backend() -> str:
    """Returns "cpu", "tpu", "rocm", or "cuda" with the GPU's compute capability: "cuda 9.0"."""
    if planned := _planned.get():
        return planned
    backend = jax.default_backend()
    if backend != "gpu":
        return backend
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:
        return "rocm"
    return f"cuda {device.compute_capability}"
