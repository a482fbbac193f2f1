"""What is asked of the machine before jax is imported."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax import devices
from gpt_jax.devices import (
    compiler_options,
    keep_compiled_programs,
    largest_divisor,
    missing_accelerator,
    request_cpu_devices,
    retain_freed_memory,
    usable_cores,
)
from gpt_jax.errors import UserError

NVIDIA = 'this machine has an NVIDIA GPU that jax does not use; pip install -U "jax[cuda13]"'
AMD = 'this machine has an AMD GPU that jax does not use; pip install -U "jax[rocm7-local]"'
TPU = 'this machine has a TPU that jax does not use; pip install -U "jax[tpu]"'


# --- sizes ----------------------------------------------------------------------------------------


@given(st.integers(1, 5000), st.integers(0, 300))
@settings(deadline=None, derandomize=True)
def test_largest_divisor_divides_and_no_larger_one_does(n, limit):
    found = largest_divisor(n, limit)
    assert n % found == 0
    assert 1 <= found <= max(1, limit)
    assert all(n % d for d in range(found + 1, min(n, limit) + 1))


@pytest.mark.parametrize(
    ("n", "limit", "divisor"),
    [(32, 2, 2), (32, 6, 4), (12, 5, 4), (7, 6, 1), (7, 7, 7), (4, 64, 4), (1, 8, 1), (9, 0, 1)],
)
def test_largest_divisor_by_hand(n, limit, divisor):
    assert largest_divisor(n, limit) == divisor


# --- cores ----------------------------------------------------------------------------------------


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def write(root, path, content=""):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("350000 100000\n", 3),
        ("50000 100000\n", 1),
        ("6400000 100000\n", 8),
        ("", 8),
        ("nonsense\n", 8),
        ("a b\n", 8),
    ],
)
def test_a_containers_quota_limits_the_cores(tmp_path, quota, cores):
    write(tmp_path, "sys/fs/cgroup/cpu.max", quota)
    assert usable_cores(tmp_path) == cores


@pytest.mark.usefixtures("eight_cores")
def test_without_a_quota_the_affinity_counts(tmp_path):
    assert usable_cores(tmp_path) == 8


@pytest.mark.parametrize(("count", "cores"), [(6, 6), (None, 1)])
def test_where_there_is_no_affinity_the_machine_counts(tmp_path, monkeypatch, count, cores):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert usable_cores(tmp_path) == cores


@pytest.mark.usefixtures("eight_cores")
def test_a_machine_in_words(tmp_path):
    assert devices.describe_machine(tmp_path).endswith(", 8 cores")
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD EPYC\n" * 8)
    write(tmp_path, "proc/meminfo", "MemTotal:       25165824 kB\nMemFree:  1 kB\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "100000 100000\n")
    assert devices.describe_machine(tmp_path) == "AMD EPYC, 1 core, 24 GiB"


# --- asking for devices ---------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch):
    """Six cores and a clean environment, put back at the end."""
    for name in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS"):
        monkeypatch.setenv(name, "")  # so that monkeypatch remembers it
        monkeypatch.delenv(name)
    monkeypatch.setattr(devices, "usable_cores", lambda: 6)
    return monkeypatch


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("batch_size", "n"), [(32, "4"), (12, "6"), (7, "1"), (1, "1")])
def test_as_many_devices_as_divide_the_batch_and_have_a_core(batch_size, n):
    request_cpu_devices(batch_size)
    assert os.environ["JAX_NUM_CPU_DEVICES"] == n


@pytest.mark.usefixtures("environment")
def test_a_mesh_has_the_devices_it_names():
    request_cpu_devices(32, at_least=8)
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "8"


def test_the_users_device_count_wins(environment):
    environment.setenv("JAX_NUM_CPU_DEVICES", "3")
    request_cpu_devices(32)
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "3"


def test_the_users_xla_device_count_wins(environment):
    flags = "--xla_dump_to=x --xla_force_host_platform_device_count=5"
    environment.setenv("XLA_FLAGS", flags)
    request_cpu_devices(32)
    assert "JAX_NUM_CPU_DEVICES" not in os.environ
    assert os.environ["XLA_FLAGS"] == flags


def test_other_xla_flags_change_nothing(environment):
    environment.setenv("XLA_FLAGS", "--xla_dump_to=x")
    request_cpu_devices(32)
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "4"
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"


# --- accelerators that jax does not use -----------------------------------------------------------


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({}, ""),
        ({"proc/driver/nvidia/version": ""}, NVIDIA),
        ({"dev/nvidia0": ""}, NVIDIA),
        ({"dev/kfd": "", "dev/dri/renderD128": ""}, AMD),
        ({"dev/kfd": ""}, ""),
        ({"dev/dri/renderD128": ""}, ""),
        ({"dev/accel0": ""}, TPU),
        (
            {
                "sys/bus/pci/devices/0000:00:04.0/vendor": "0x1ae0\n",
                "sys/bus/pci/devices/0000:00:04.0/device": "0x0063\n",
            },
            TPU,
        ),
        (
            {
                "sys/bus/pci/devices/0000:00:04.0/vendor": "0x8086\n",
                "sys/bus/pci/devices/0000:00:04.0/device": "0x0063\n",
            },
            "",
        ),
    ],
)
def test_an_unused_accelerator_gets_the_line_that_brings_it(root, files, line):
    for path, content in files.items():
        write(root, path, content)
    assert missing_accelerator("cpu", root) == line


@pytest.mark.parametrize("device", ["0x0042\n", "0x001f\n"])
def test_googles_network_card_and_disk_are_no_tpu(root, device):
    write(root, "sys/bus/pci/devices/0000:00:03.0/vendor", "0x1ae0\n")
    write(root, "sys/bus/pci/devices/0000:00:03.0/device", device)
    assert missing_accelerator("cpu", root) == ""


@pytest.mark.parametrize("backend", ["gpu", "cuda", "tpu"])
def test_an_accelerator_in_use_gets_no_line(root, backend):
    write(root, "dev/nvidia0")
    assert missing_accelerator(backend, root) == ""


def test_a_user_who_chose_the_cpu_gets_no_line(root, monkeypatch):
    write(root, "dev/nvidia0")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert missing_accelerator("cpu", root) == ""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert missing_accelerator("cpu", root) == NVIDIA


@pytest.fixture
def no_cache_settings(monkeypatch):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_cache_settings")
def test_each_kind_of_processor_has_a_compilation_cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = []
    for flags in ("avx2", "avx512f", "avx2"):
        root = tmp_path / f"root{len(folders)}"
        (root / "proc").mkdir(parents=True)
        (root / "proc/cpuinfo").write_text(f"model name\t: A\nflags\t: {flags}\ncpu MHz\t: 1\n" * 2)
        keep_compiled_programs(root)
        folders.append(os.environ.pop("JAX_COMPILATION_CACHE_DIR"))
    assert folders[0] == folders[2] != folders[1]
    assert all(Path(folder).is_relative_to(tmp_path / "cache" / "gpt_jax") for folder in folders)
    assert Path(folders[0]).stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("no_cache_settings")
def test_a_users_own_compilation_cache_wins_and_no_home_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_compiled_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_library_products_are_turned_off_on_a_cpu_only():
    assert compiler_options("gpu", library_products=False) == {}
    assert "ynn" not in str(compiler_options("cpu", library_products=True))
    options = compiler_options("cpu", library_products=False)
    product = jax.jit(lambda a: jax.nn.softmax(a @ a), compiler_options=options)
    assert "ynn" not in product.lower(jnp.ones((512, 512))).compile().as_text()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "--xla_gpu_deterministic_ops=true"),
        ("--a=1", "--a=1 --xla_gpu_deterministic_ops=true"),
        ("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_determinism_is_asked_of_xla_and_a_users_flag_wins(monkeypatch, before, after):
    monkeypatch.setenv("XLA_FLAGS", before)
    devices.request_determinism()
    assert os.environ["XLA_FLAGS"] == after


@pytest.mark.slow
def test_xla_knows_the_flag_of_determinism():
    """A flag that XLA does not know ends the process."""
    code = "from gpt_jax import devices; devices.request_determinism(); import jax; jax.devices()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- memory ---------------------------------------------------------------------------------------

FAULTS = """
import resource, sys
from gpt_jax import devices
if sys.argv[1] == "keep":
    devices.retain_freed_memory()
for _ in range(40):
    b"x" * 2**25  # 32 MiB, written to and freed
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def test_freed_memory_is_used_again():
    """40 arrays of 32 MiB touch their pages once instead of 40 times (where glibc allocates)."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    faults = {}
    for way in ("keep", "give"):
        command = [sys.executable, "-c", FAULTS, way]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        faults[way] = int(done.stdout)
    if platform.libc_ver()[0] == "glibc":
        assert faults["keep"] < faults["give"] / 2


def test_the_user_s_allocator_settings_win(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("it set something"))
    retain_freed_memory()


@pytest.mark.parametrize("n", ["0", "-3", "1025", "100000", "9" * 30])
def test_a_number_of_devices_that_cannot_be_is_one_line(monkeypatch, n):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", n)
    with pytest.raises(UserError, match=f"^JAX_NUM_CPU_DEVICES={n} must be from 1 to 1,024"):
        request_cpu_devices(8)


@pytest.mark.parametrize("n", ["-1", "1", "1024", "x"])
def test_what_jax_understands_or_refuses_itself_is_left_to_it(monkeypatch, n):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", n)
    request_cpu_devices(8)
    assert os.environ["JAX_NUM_CPU_DEVICES"] == n
