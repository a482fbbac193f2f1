"""Which devices a machine offers, asked before jax is imported.

jax reads these choices once, at its first computation, so the commands make them first. The
library, imported in a notebook, takes the devices that jax finds.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
from pathlib import Path

# PCI vendor and device, as in jax's hardware_utils; Google's other cards are no TPUs.
TPU_DEVICES = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
TPUS = {("0x1ae0", device) for device in TPU_DEVICES}

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h

# The environment in which libtpu compiles for TPUs that are only described: it looks for none, says
# nothing about that, and lets others do so at the same time.
TPU_COMPILE_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # such programs can be kept, but not read again
}

# Of a container's memory: files with the limit and the use, memory.stat's name for cached files
# that were not read lately; cgroup v2, v1.
CGROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)

WIDE_N_EMBD = 256  # n_embd from which XLA's own matrix products are the faster ones on a CPU
GIB = 2**30


def largest_divisor(n: int, limit: int) -> int:
    """Returns the largest divisor of n that is not above the limit (at least 1)."""
    return next(d for d in range(max(1, min(n, limit)), 0, -1) if n % d == 0)


def usable_cores(root: Path = Path("/")) -> int:
    """Returns the CPU cores this process may use: its affinity, and a container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max": no quota
        pass
    return cores


def available_memory(root: Path = Path("/")) -> int | None:
    """Returns the bytes this process may still take: free ones, within what a container has left.

    Of what a container uses, cached files that were not read lately don't count: they give way.
    None where the system has no /proc/meminfo.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    if not found:
        return None
    limits = [1024 * int(found[1])]
    for limit, usage, cached in CGROUPS:
        folder = (root / "sys/fs/cgroup" / limit).parent
        text, used = _read(root / "sys/fs/cgroup" / limit), _read(folder / usage)
        if text.isdigit():  # else "max": no limit
            found = re.search(rf"^{cached} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
            in_use = int(used) if used.isdigit() else 0
            limits.append(max(0, int(text) - max(0, in_use - int(found[1] if found else 0))))
    return min(limits)


def request_cpu_devices(batch_size: int, at_least: int = 1) -> None:
    """Asks jax for as many CPU devices as divide the batch and have a core each.

    A mesh that names more has them, `at_least`: they share the cores.

    Two XLA devices on two cores train 1.3 times as fast as one device with two threads. Has no
    effect on a GPU or TPU; a user's own JAX_NUM_CPU_DEVICES or device count in XLA_FLAGS wins.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        n = max(at_least, largest_divisor(batch_size, usable_cores()))
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(n))


def request_determinism() -> None:
    """Asks XLA for GPU programs that give the same bits every time; XLA_FLAGS wins.

    They use no atomic additions, and no kernels chosen by a stopwatch.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".lstrip()


def retain_freed_memory() -> None:
    """Lets glibc's allocator reuse what a program frees instead of giving it back to the system.

    XLA's CPU programs take their buffers anew at every call, and the system hands out pages one
    fault and one clearing at a time. Figures are in benchmarks/LOG.md; `MALLOC_MMAP_MAX_` in the
    environment wins. Has no effect without glibc.
    """
    if "MALLOC_MMAP_MAX_" in os.environ or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def keep_compiled_programs(root: Path = Path("/")) -> None:
    """Lets jax keep compiled programs between runs, in a folder of the user's own.

    `JAX_COMPILATION_CACHE_DIR` names another place, and `JAX_ENABLE_COMPILATION_CACHE=0` turns it
    off. A program may use any instruction of the processor it was compiled on, so each kind of
    processor has a folder of its own: a home may be shared between machines.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    keys = ("model name", "flags", "Features", "CPU part")  # the latter two are Arm's
    info = _read(root / "proc/cpuinfo").splitlines()
    processor = sorted({line for line in info if line.startswith(keys)}) or [platform.processor()]
    digest = hashlib.sha256("\n".join([platform.machine(), *processor]).encode()).hexdigest()[:12]
    folder = Path(cache) / "gpt_jax" / f"xla-{digest}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return  # no home to write to: compile every time
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def compiler_options(backend: str, *, library_products: bool) -> dict[str, str | int]:
    """Returns XLA options for `jax.jit`; figures for both are in benchmarks/LOG.md.

    On a CPU, optimization level 1 compiles sooner and runs as fast. XLA hands matrix products and
    reductions to the library YNNPACK there, which trains small models faster; products of one
    token, or of wide models (`WIDE_N_EMBD`), are faster by XLA's other way.

    Args:
      backend: what `jax.default_backend()` says.
      library_products: leave the products to YNNPACK where XLA does.
    """
    if backend != "cpu":
        return {}
    options: dict[str, str | int] = {"xla_backend_optimization_level": 1}
    return options if library_products else options | {"xla_cpu_experimental_ynn_fusion_type": ""}


def has_tpu(root: Path = Path("/")) -> bool:
    """Says whether a TPU is in the machine."""
    cards = (root / "sys/bus/pci/devices").glob("*")
    found = {(_read(card / "vendor"), _read(card / "device")) for card in cards}
    return (root / "dev/accel0").exists() or bool(found & TPUS)


def missing_accelerator(backend: str, root: Path = Path("/")) -> str:
    """Returns a line for a GPU or TPU that is in the machine and that jax does not use, or ""."""
    if backend != "cpu" or os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return ""
    if (root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidia0").exists():
        return 'this machine has an NVIDIA GPU that jax does not use; pip install -U "jax[cuda13]"'
    if (root / "dev/kfd").exists() and any((root / "dev/dri").glob("renderD*")):
        return (
            'this machine has an AMD GPU that jax does not use; pip install -U "jax[rocm7-local]"'
        )
    if has_tpu(root):
        return 'this machine has a TPU that jax does not use; pip install -U "jax[tpu]"'
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
