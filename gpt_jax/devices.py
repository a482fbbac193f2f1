"""CPU cores, memory and XLA options of the machine, read and set before jax is imported.

jax reads these options once, at its first computation, so the commands set them first. Imported as
a library, in a notebook, the package uses the devices that jax finds.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
from pathlib import Path

from gpt_jax.errors import UserError

# PCI vendor and device, as in jax's hardware_utils; Google's other cards are not TPUs.
TPU_DEVICES = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
TPUS = {("0x1ae0", device) for device in TPU_DEVICES}

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h

# The environment in which jax compiles for devices that are only described. libtpu looks for no
# TPU, logs nothing about that, and may be loaded by several processes.
COMPILE_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # they could be written to the cache, but not read
}

# A container's memory, in cgroup v2 and v1: the files with its limit and its usage, and the key in
# memory.stat of cached files that were not read lately.
CGROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)

# jax's words for a device that isn't there.
REFUSED_BACKEND = re.compile(
    r"^(Unable to initialize|Unknown|Could not initialize) backend|^Backend '"
)
MOST_CPU_DEVICES = 1024
LEAST_ADDRESS_SPACE = 2 * 2**30  # nano takes 2.1 GiB of it on two cores

WIDE_N_EMBD = 256  # n_embd from which XLA's own matrix products are faster on a CPU
GIB = 2**30


def check_address_space() -> None:
    """Raises UserError where a limit of this process is too small for jax, which would abort."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit not in (resource.RLIM_INFINITY, -1) and limit < LEAST_ADDRESS_SPACE:
        raise UserError(
            f"the address space of this process is limited to {limit / GIB:.1f} GiB (ulimit -v), "
            f"and jax needs {LEAST_ADDRESS_SPACE / GIB:.0f}; raise the limit"
        )


def environment_problem(error: BaseException) -> str:
    """Returns a line where an error says that jax refuses a setting of the environment, else ""."""
    text = str(error) or "there is no such device here"  # jax asserts that there is one
    if isinstance(error, ValueError) and _was_raised_in(error, "jax/_src/config.py"):
        said = text.lower()
        names = [name for name in os.environ if name.startswith("JAX_")]
        asked = [name for name in names if name.lower() in said]
        asked = asked or [name for name in names if repr(os.environ[name].lower()) in said]
        way_out = "mend it, or unset it"
    elif _was_raised_in(error, "jax/_src/xla_bridge.py") or (
        isinstance(error, RuntimeError) and REFUSED_BACKEND.search(text)
    ):
        platforms = os.environ.get("JAX_PLATFORMS", "")
        names = ["JAX_PLATFORMS"] + ["JAX_NUM_CPU_DEVICES"] * platforms.startswith("cpu")
        asked = [name for name in names if os.environ.get(name)]
        way_out = "set JAX_PLATFORMS=cpu, or unset it"
    else:
        return ""
    settings = ", ".join(f"{name}={os.environ[name]}" for name in asked)
    return f"jax refuses {settings or 'the environment'}: {text.splitlines()[0]:.300}; {way_out}"


def _was_raised_in(error: BaseException, file: str) -> bool:
    at = error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename.replace(os.sep, "/").endswith(file):
            return True
        at = at.tb_next
    return False


def largest_divisor(n: int, limit: int) -> int:
    """Returns the largest divisor of n that is at most the limit, and at least 1."""
    return next(d for d in range(max(1, min(n, limit)), 0, -1) if n % d == 0)


def usable_cores(root: Path = Path("/")) -> int:
    """Returns how many CPU cores this process may use, by its affinity and a container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max": no quota
        pass
    return cores


def describe_machine(root: Path = Path("/")) -> str:
    """Returns the processor, the cores that this process may use, and the memory, in words."""
    name = re.search(r"^model name\s*:\s*(.+)", _read(root / "proc/cpuinfo"), re.MULTILINE)
    total = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    processor, cores = name[1] if name else platform.processor(), usable_cores(root)
    memory = f"{int(total[1]) * 1024 / GIB:.0f} GiB" if total else ""
    parts = (processor or platform.machine(), f"{cores} core{'s' * (cores > 1)}", memory)
    return ", ".join(part for part in parts if part)


def available_memory(root: Path = Path("/")) -> int | None:
    """Returns the bytes this process may still allocate, within a container's limit.

    Cached files that were not read lately do not count as used, since the system can evict them.
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

    A mesh may need more of them, `at_least`; they then share the cores.

    Two XLA devices on two cores train 1.3 times as fast as one device with two threads. Has no
    effect on a GPU or TPU; a user's own JAX_NUM_CPU_DEVICES or device count in XLA_FLAGS wins.

    Raises:
      UserError: see `check_address_space`; or JAX_NUM_CPU_DEVICES is no number of devices.
    """
    check_address_space()
    asked = os.environ.get("JAX_NUM_CPU_DEVICES", "-1")  # jax's word for "not set"
    is_number = asked.removeprefix("-").isdecimal()
    if is_number and asked != "-1" and not 0 < int(asked) <= MOST_CPU_DEVICES:
        raise UserError(  # jax takes any number: it begins, and never ends or has no device
            f"JAX_NUM_CPU_DEVICES={asked} must be from 1 to {MOST_CPU_DEVICES:,}; mend it, or "
            "unset it"
        )
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        n = max(at_least, largest_divisor(batch_size, usable_cores()))
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(n))


def request_determinism() -> None:
    """Asks XLA for GPU programs that are bitwise reproducible; the user's XLA_FLAGS win.

    They use no atomic additions, and no kernels that are selected by timing them.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".lstrip()


def asks_for_determinism() -> bool:
    """Returns whether XLA is asked for GPU programs that are bitwise reproducible."""
    asked = re.findall(r"--xla_gpu_deterministic_ops(?:=(\w+))?", os.environ.get("XLA_FLAGS", ""))
    return bool(asked) and asked[-1].lower() in ("", "true", "1")


def retain_freed_memory() -> None:
    """Lets glibc's allocator reuse freed memory instead of returning it to the system.

    XLA's CPU programs allocate their buffers anew at every call, and each page from the system
    costs a page fault and its clearing. Figures are in benchmarks/LOG.md; `MALLOC_MMAP_MAX_` in the
    environment wins. Has no effect without glibc.
    """
    if "MALLOC_MMAP_MAX_" in os.environ or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def keep_compiled_programs(root: Path = Path("/")) -> None:
    """Sets jax's compilation cache, which keeps compiled programs between runs.

    `JAX_COMPILATION_CACHE_DIR` names another folder, and `JAX_ENABLE_COMPILATION_CACHE=0` turns it
    off. A program may use any instruction of the processor it was compiled on, and a home folder
    may be shared between machines, so each kind of processor has a separate folder.
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
        return  # the home folder cannot be written: compile every time
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def compiler_options(backend: str, *, library_products: bool) -> dict[str, str | int]:
    """Returns XLA options for `jax.jit`; figures for both are in benchmarks/LOG.md.

    On a CPU, optimization level 1 compiles faster and runs as fast. There XLA gives matrix products
    and reductions to the library YNNPACK, which trains small models faster; products of one token,
    or of wide models (`WIDE_N_EMBD`), are faster without it.

    Args:
      backend: what `jax.default_backend()` says.
      library_products: let XLA use YNNPACK for matrix products.
    """
    if backend != "cpu":
        return {}
    options: dict[str, str | int] = {"xla_backend_optimization_level": 1}
    return options if library_products else options | {"xla_cpu_experimental_ynn_fusion_type": ""}


def has_tpu(root: Path = Path("/")) -> bool:
    """Returns whether the machine has a TPU."""
    cards = (root / "sys/bus/pci/devices").glob("*")
    found = {(_read(card / "vendor"), _read(card / "device")) for card in cards}
    return (root / "dev/accel0").exists() or bool(found & TPUS)


def missing_accelerator(backend: str, root: Path = Path("/")) -> str:
    """Returns a note about a GPU or TPU of the machine that jax does not use, or ""."""
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
