"""What a computation depends on beside its settings and its data: fixed, or recorded.

jax reads many options from the environment. Those that would change the numbers drawn or the types
of arrays are fixed here by context managers, around what traces and computes, so that the process
of a caller keeps its own. The precision of matrix products is the user's choice: it is recorded,
and a run keeps it. Versions, devices and the mesh change rounding: they are recorded, and a
resumed run's rows say what has changed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Generator, Mapping
from typing import Any, ParamSpec, TypeVar

import flax
import jax

from gpt_jax.errors import UserError, differences
from gpt_jax.prng import IMPLEMENTATION
from gpt_jax.version import __version__

P = ParamSpec("P")
R = TypeVar("R")
# How this program rounds; a release that computes something in another way counts on.
# 2: LayerNorm subtracts the mean before it squares; devices sum their micro-batches first,
# over fsdp where their memory allows. 3: of two factors of a kernel's gradient, the narrower is
# transposed.
REVISION = 3
PACKAGES = ("gpt_jax", "jax", "jaxlib", "flax", "optax", "numpy")
# What changes draws, or the precision asked for: (value where nothing is set, how to set it).
KEPT: dict[str, tuple[Any, str]] = {
    "prng": (IMPLEMENTATION, "use the release of gpt_jax that made it"),
    "partitionable": (True, "use the release of gpt_jax that made it"),
    "x64": (False, "use the release of gpt_jax that made it"),
    "matmul_precision": (None, "set JAX_DEFAULT_MATMUL_PRECISION, or unset it for None"),
    "flax_rng_separator": (False, "set FLAX_FIX_RNG_SEPARATOR to 1 for True, or unset it"),
}
NOT_NUMERIC = re.compile(  # flags of jax that say where or how long, not what is computed
    "dir|dump|log|debug|cache|distributed|address|socket|topology|timeout|visible|traceback|_file"
    "|num_|coordinat|preemption|recoverab|platform|profil|pgle|backend|pprint|tracer|wait|metadata"
)


@contextlib.contextmanager
def fixed() -> Generator[None]:
    """In it this thread draws and computes as by jax's defaults, whatever the environment says.

    Also a decorator. Values have 32 bits; what is asked of matrix products stays.
    """
    with (
        jax.enable_x64(False),
        jax.threefry_partitionable(True),
        jax.default_prng_impl(IMPLEMENTATION),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.legacy_prng_key("allow"),
    ):
        yield


def carried(function: Callable[P, R]) -> Callable[P, R]:
    """Returns `function` for another thread, where it computes as it would in this one."""
    precision = _matmul_precision()

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with fixed(), jax.default_matmul_precision(precision):
            return function(*args, **kwargs)

    return run


def _matmul_precision() -> str | None:
    return jax.config.values["jax_default_matmul_precision"]  # of this thread


def asked_for() -> dict[str, Any]:
    """Returns what a run keeps from its first step to its last: see `KEPT`."""
    return {
        "prng": IMPLEMENTATION,
        "partitionable": True,
        "x64": False,
        "matmul_precision": _matmul_precision(),
        "flax_rng_separator": bool(flax.config.flax_fix_rng_separator),
    }


def environment(mesh: Mapping[str, int]) -> dict[str, Any]:
    """Returns what changes rounding alone: versions, devices, mesh, the compiler's options.

    Args:
      mesh: the size of each axis.
    """
    device = jax.local_devices()[0]
    kind = platform.machine() if device.platform == "cpu" else device.device_kind
    return {
        "rounding": REVISION,
        **{name: _version(name) for name in PACKAGES},
        "device": f"{device.platform} {kind}",
        "mesh": "x".join(str(size) for size in mesh.values()),
        "hosts": jax.process_count(),
        "xla_flags": _xla_flags(),
    }


def _version(package: str) -> str:
    return __version__ if package == "gpt_jax" else importlib.metadata.version(package)


def _xla_flags() -> str:
    """Returns the options that XLA takes from the environment, without places and devices."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    return " ".join(sorted(f for f in flags if "dump" not in f and "device_count" not in f))


def check_kept(recorded: Mapping[str, Any] | None, run_dir: str) -> None:
    """Raises UserError where a run would go on with other draws or another precision.

    Args:
      recorded: what its config.json says; None in earlier releases, made under the defaults.
      run_dir: the run's folder.
    """
    now = asked_for()
    there = {name: (recorded or {}).get(name, default) for name, (default, _) in KEPT.items()}
    if lines := differences(there, now, repr):
        ways = dict.fromkeys(KEPT[n][1] for n in now if there[n] != now[n])
        raise UserError(
            f"{run_dir} was begun with other numerics: {'; '.join(lines)}; {', and '.join(ways)}, "
            "or choose another --run-dir"
        )


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of `environment` is not as before; a name that is missing before is unknown."""
    before = {"rounding": 1, **before}
    return {n: value for n, value in now.items() if n in before and before[n] != value}


def flags() -> dict[str, Any]:
    """Returns every option of jax that may change what is computed, to be compared by hosts."""
    with fixed():
        names = [name for name in jax.config.values if not NOT_NUMERIC.search(name)]
        values = {name: getattr(jax.config, name, None) for name in sorted(names)}
    plain = (bool, int, float, str, type(None))
    return {n: v if isinstance(v, plain) else repr(v) for n, v in values.items()}
