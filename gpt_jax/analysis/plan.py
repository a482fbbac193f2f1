"""The memory and time that a run would need on given devices, from its compiled train step.

The step is the one that trains, compiled for devices of this machine or for devices that are only
described, such as a TPU slice or eight H100s: `python main.py plan`. Nothing may be allocated or
trained here. The compiled program is read in `hlo.py` and, for NVIDIA GPUs, `gpu_kernels.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from gpt_jax.analysis import decode_plan, gpu_bound
from gpt_jax.analysis.chips import CHIPS, Chip
from gpt_jax.analysis.compiling import (
    LARGE_GPU_SHARE,
    SHARE_VARIABLES,
    bytes_asked_for,
    compile_options,
    gpu_share,
)
from gpt_jax.analysis.decode_plan import DecodeBound, plan_decoding
from gpt_jax.analysis.gpu_bound import Group, find_groups
from gpt_jax.analysis.gpu_kernels import Kernel, find_kernels
from gpt_jax.analysis.hlo import Collective, HloProgram
from gpt_jax.analysis.topologies import described_backend, find_gpu
from gpt_jax.config import Config, override
from gpt_jax.config.fields import get_field
from gpt_jax.devices import GIB
from gpt_jax.errors import ConfigError, is_out_of_memory
from gpt_jax.model.attention import choose_attention, needs_mesh
from gpt_jax.model.dtype import resolve_dtype, slow_dtype
from gpt_jax.parallel.backend import compiling_for, target_backend
from gpt_jax.parallel.mesh import make_mesh, micro_batches, with_micro_batch
from gpt_jax.parallel.sharding import mesh_context
from gpt_jax.training.compiled_steps import abstract_inputs, jit_train_chunk, recent_losses_spec
from gpt_jax.training.flops import model_flops as model_flops
from gpt_jax.training.memory import estimate_memory, local_need, memory_limit, program_bytes
from gpt_jax.training.micro_batch import SHARE, choose_micro_batch

SPLASH_NAME = "splash attention, jax's Pallas kernel for TPUs"
MAX_CANDIDATES = 6  # compiled in search of a config that fits
SHOWN_GROUPS = 5


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one optimizer step needs.

    Bytes are per device, except for the memory of CPU devices: they share it, so it is their total.

    Attributes:
      devices: their number and kind.
      mesh: sizes of its axes.
      n_params: parameters of the model.
      tokens: per step, over all devices.
      flops: per step, over all devices; see `model_flops`; None if unknown.
      attention: its implementation, and why that one.
      memory: bytes that the step needs, including `arguments`.
      arguments: bytes of its arguments: the state and a batch.
      limit: bytes that programs get of a device's memory; None if unknown. Of a described GPU
        that is jax's share; see `compiling.gpu_share`.
      shares_memory: whether the devices are a CPU's.
      memory_is_floor: whether `memory` is a lower bound, because compiling failed.
      traffic: approximate bytes read and written, on an NVIDIA GPU those of `groups`, else those of
        `hlo.HloProgram.memory_traffic`; None if the compiled text can't be read.
      collectives: communication between devices.
      chip: the data sheet; None if unknown.
      sampling: bytes that the decoder needs on each device it uses, if requested.
      decoding: a bound on the time of a token, on NVIDIA GPUs, if requested.
      trace_seconds: that tracing the step took on this machine; None: not measured.
      compile_seconds: that compiling it took; likewise.
      groups: what an NVIDIA GPU's kernels are for, the slowest first; see `gpu_bound`.
      notes: what settings that are "auto" would be there, and what is slow there.
    """

    devices: str
    mesh: dict[str, int]
    n_params: int
    tokens: int
    flops: float | None
    attention: str
    memory: float
    arguments: float
    limit: float | None
    shares_memory: bool = False
    memory_is_floor: bool = False
    traffic: float | None = 0
    collectives: tuple[Collective, ...] = ()
    chip: Chip | None = None
    sampling: float | None = None
    decoding: tuple[DecodeBound, ...] = ()
    trace_seconds: float | None = None
    compile_seconds: float | None = None
    groups: tuple[Group, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the step fits into memory, as far as that is known."""
        most = max(self.memory, self.sampling or 0)
        return not self.memory_is_floor and (self.limit is None or most <= self.limit)

    @property
    def fits_a_larger_share(self) -> bool:
        """Whether an NVIDIA GPU has enough memory for the step, if jax takes more of it."""
        if self.fits or self.memory_is_floor or self.chip is None or not self.groups:
            return False
        return max(self.memory, self.sampling or 0) <= LARGE_GPU_SHARE * self.chip.memory

    @property
    def where(self) -> str:
        """What `memory` counts, human-readable."""
        return "in all (the devices share it)" if self.shares_memory else "per device"

    @property
    def seconds(self) -> dict[str, float]:
        """Lower bounds of a step's seconds by the data sheet, for each kind of work alone."""
        if self.chip is None or self.memory_is_floor:
            return {}
        seconds = {}
        if self.traffic is not None:
            sent = sum(c.bytes_sent for c in self.collectives)
            seconds["memory"] = self.traffic / self.chip.bandwidth
            seconds["network"] = sent / self.chip.network
        if self.flops is None:
            return seconds
        n_devices = math.prod(self.mesh.values())
        return {"computing": self.flops / n_devices / self.chip.flops, **seconds}

    @property
    def kernel_seconds(self) -> float:
        """A lower bound of a step's seconds: its kernels at assumed rates, see `gpu_bound`."""
        return sum(g.seconds for g in self.groups if not gpu_bound.overlaps(g))

    @property
    def mfu(self) -> float | None:
        """The share of the peak that the model's operations reach at `kernel_seconds`, at most."""
        if not (self.kernel_seconds and self.chip and self.flops):
            return None
        per_device = self.flops / math.prod(self.mesh.values())
        return per_device / self.kernel_seconds / self.chip.flops

    def record(self) -> dict[str, Any]:
        """Returns the plan for JSON."""
        return dataclasses.asdict(self) | {
            "fits": self.fits,
            "seconds": self.seconds,
            "kernel_seconds": self.kernel_seconds or None,
            "mfu": self.mfu,
            "text": str(self),
        }

    def __str__(self) -> str:
        axes = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        at_least = "at least " if self.memory_is_floor else ""
        has = "" if self.limit is None else f"; available: {self.limit / GIB:.2f} GiB"
        flops = "unknown" if self.flops is None else f"{self.flops:.3g}"
        facts = {
            "devices": f"{self.devices}, mesh {axes}",
            "parameters": f"{self.n_params:,}",
            "attention": self.attention,
            "step": f"{self.tokens:,} tokens, {flops} floating point operations",
            "memory": f"{at_least}{self.memory / GIB:.2f} GiB {self.where}, including "
            f"{self.arguments / GIB:.2f} for the state and a batch{has}: "
            f"{'fits' if self.fits else 'does NOT fit'}",
        }
        if self.fits_a_larger_share:
            facts["memory"] += f"; with {SHARE_VARIABLES[1]}={LARGE_GPU_SHARE} it does"
        if self.compile_seconds is not None:
            facts["compiling"] = (
                f"traced in {self.trace_seconds:.0f} s, compiled in {self.compile_seconds:.0f} s"
            )
        if self.sampling is not None:
            facts["sampling"] = f"{self.sampling / GIB:.2f} GiB a device"
        if self.traffic is None:
            facts["traffic"] = "unknown: this jaxlib can't read what its compiler wrote"
        elif not self.memory_is_floor:
            facts["traffic"] = (
                f"about {_amount(self.traffic)} of memory reads and writes per device"
            )
        if self.seconds:
            bound = max(self.seconds, key=lambda name: self.seconds[name])
            shown = ", ".join(f"{name} {1000 * s:.3g}" for name, s in self.seconds.items())
            fastest = self.tokens / self.seconds[bound]
            facts["ms at least"] = (
                f"{shown}: bound by {bound}, at most {fastest:,.0f} tokens/s by the data sheet of "
                f"{self.chip.name if self.chip else ''}"
            )
        if self.groups:
            facts["kernels"] = self._kernels()
        lines = [f"{name:<12} {text}" for name, text in facts.items()]
        lines += [f"note         {note}" for note in self.notes] + self._group_lines()
        if self.decoding:
            lines += ["", decode_plan.HEADING, *map(str, self.decoding)]
        if self.collectives:
            lines += [
                "",
                f"{'collective':<20} {'group':>5} {'times':>7} {'largest':>11} {'sent':>11}",
            ]
            lines += [
                f"{c.kind:<20} {c.group:>5} {c.times:>7,} {_amount(c.bytes_each):>11} "
                f"{_amount(c.bytes_sent):>11}"
                for c in self.collectives
            ]
        return "\n".join(lines)

    def _kernels(self) -> str:
        mfu = "" if self.mfu is None else f": MFU at most {100 * self.mfu:.1f}%"
        return (
            f"{sum(g.launches for g in self.groups):,} launched, at least "
            f"{1000 * self.kernel_seconds:.4g} ms at {gpu_bound.MATMUL_SHARE:.0%} of the peak and "
            f"{gpu_bound.BANDWIDTH_SHARE:.0%} of the bandwidth{mfu}"
        )

    def _group_lines(self) -> list[str]:
        """Returns why the bound is what it is: the slowest groups and what changes them."""
        shown = self.groups[:SHOWN_GROUPS]
        heading = f"{'kernels of':<30} {'ms':>8} {'share':>6}  what changes it"
        lines = ["", heading] if shown else []
        for g in shown:
            share = "beside" if gpu_bound.overlaps(g) else f"{g.seconds / self.kernel_seconds:.0%}"
            lines.append(f"{g.name:<30} {1000 * g.seconds:>8.2f} {share:>6}  {g.lever}".rstrip())
        return lines


def _amount(n_bytes: float) -> str:
    """Returns bytes in a human-readable form, in three digits."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if n_bytes >= 10**power:
            return f"{float(f'{n_bytes / 10**power:.3g}'):,g} {unit}"
    return f"{n_bytes:.0f} bytes"


def make_plan(
    config: Config, devices: Sequence[jax.Device] | None = None, *, sampling: bool = False
) -> Plan:
    """Compiles a train step and returns what it needs.

    Args:
      config: the settings, with the size of the vocabulary.
      devices: described or real; the default is those of this machine.
      sampling: also compile the decoder, with the parameters split as `load_run` does.

    Raises:
      ConfigError: the mesh does not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    described = devices[0] not in jax.local_devices()
    backend = described_backend(devices[0]) if described else target_backend()
    with compiling_for(backend):
        config, notes = resolve_dtype(config, backend)
        if slow := slow_dtype(config.model.dtype, backend):
            notes += (slow,)
        if config.train.micro_batch != "auto":
            found = _make_plan(config, devices, backend, described, sampling)
        else:
            n, found = _choose_micro_batch(config, devices, backend, described)
            notes += (f"train.micro_batch=auto is {n:,} of {config.train.batch_size:,}",)
            if sampling:
                found = _make_plan(with_micro_batch(config, n), devices, backend, described, True)
    return dataclasses.replace(found, notes=notes + found.notes)


def _choose_micro_batch(config, devices, backend, described) -> tuple[int, Plan]:
    """Returns the micro-batch that a run there would choose, and its plan."""
    plans: dict[int, Plan] = {}

    def compiled(n: int) -> float:
        plans[n] = _make_plan(with_micro_batch(config, n), devices, backend, described, False)
        return math.inf if plans[n].memory_is_floor else plans[n].memory

    sizes = micro_batches(config, len(devices))
    limit = _memory_limit(devices[0], described)
    limit = None if limit is None else SHARE * limit
    estimate = lambda n: local_need(with_micro_batch(config, n), backend, len(devices))
    n = choose_micro_batch(sizes, limit, estimate, compiled)
    if n not in plans:
        compiled(n)
    return n, plans[n]


def _memory_limit(device: jax.Device, described: bool) -> float | None:
    """Returns the bytes that programs get of a device's memory; None if unknown."""
    if not described:
        return memory_limit(device)
    if gpu := find_gpu(device):
        return gpu_share() * gpu.memory
    chip = CHIPS.get(device.device_kind)
    return chip.memory if chip else None


def _make_plan(config, devices, backend, described, sampling) -> Plan:
    model, train = config.model, config.train
    mesh = make_mesh(train.micro_batch_size, devices, config.mesh, model.kv_heads, model.block_size)
    layout = abstract_inputs(config, mesh)
    chip, gpu = CHIPS.get(devices[0].device_kind), find_gpu(devices[0])
    limit = _memory_limit(devices[0], described)
    tokens = train.batch_size * model.block_size
    attention, reason = choose_attention(model, backend)
    if attention == "fused":
        reason = SPLASH_NAME if backend == "tpu" else "cuDNN"
    # CPU devices share one memory.
    sharers = mesh.size if backend == "cpu" else 1
    before = time.perf_counter()
    with mesh_context(mesh, kernels=needs_mesh(model)):
        lowered = jit_train_chunk(config, mesh, limit).lower(
            layout.state,
            layout.gathered(1),
            layout.keys,
            recent_losses_spec(train, mesh),
            layout.hyper,
            steps=1,
        )
    traced = time.perf_counter()
    plan = Plan(
        devices=f"{mesh.size} of {len(devices)} x {devices[0].device_kind}",
        mesh=dict(mesh.shape),
        n_params=layout.n_params,
        tokens=tokens,
        flops=model_flops(model, layout.n_params, tokens),
        attention=f"{attention} ({reason})" if reason else attention,
        memory=0,
        arguments=0,
        limit=limit,
        shares_memory=backend == "cpu",
        chip=chip,
    )
    try:
        program = lowered.compile(compile_options(backend, described))
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        need = estimate_memory(config, tuple(mesh.shape.values()), backend)
        return dataclasses.replace(
            plan,
            memory=max(sharers * need.total, bytes_asked_for(str(error))),
            arguments=sharers * need.state,
            memory_is_floor=True,
        )
    compiled = time.perf_counter()
    stats = program.memory_analysis()
    decoder = plan_decoding(config, layout.state.params, devices) if sampling else None
    plan = dataclasses.replace(
        plan,
        memory=sharers * program_bytes(stats),
        arguments=sharers * stats.argument_size_in_bytes,
        sampling=decoder.memory if decoder else None,
        decoding=decoder.bounds if decoder else (),
        trace_seconds=traced - before,
        compile_seconds=compiled - traced,
    )
    try:
        text = program.as_text()
    except jax.errors.JaxRuntimeError:  # some of v6e's, where libtpu is newer than jaxlib
        return dataclasses.replace(plan, traffic=None)
    read = HloProgram(text)
    plan = dataclasses.replace(plan, collectives=tuple(read.collectives()))
    if gpu is None:
        return dataclasses.replace(plan, traffic=read.memory_traffic())
    kernels = find_kernels(text)
    groups = find_groups(kernels, gpu_bound.Rates.of(gpu))
    traffic = sum(g.bytes for g in groups if not gpu_bound.overlaps(g))
    notes = _counted_once(kernels)
    return dataclasses.replace(plan, traffic=traffic, groups=groups, notes=notes)


def _counted_once(kernels: Sequence[Kernel]) -> tuple[str, ...]:
    """Returns a note where the bound counts one iteration of loops that may have more."""
    if not (n := sum(kernel.unknown_times for kernel in kernels)):
        return ()
    return (f"{n:,} kernels are in loops whose length XLA does not know, and counted once",)


def find_fitting_config(
    config: Config, devices: Sequence[jax.Device] | None = None
) -> tuple[str, Plan] | None:
    """Returns options with which a run that does not fit does, and its plan; or None.

    They are tried in this order, each added to those before it: parameters fully sharded over all
    devices, activation checkpointing, the loss in chunks, smaller micro-batches. Each is compiled.
    """
    n = len(jax.devices() if devices is None else devices)
    for values in itertools.islice(_candidates(config, n), MAX_CANDIDATES):
        try:
            plan = make_plan(override(config, values), devices)
        except ConfigError:
            continue
        if plan.fits:
            changed = {k: v for k, v in values.items() if get_field(config, k) != v}
            shown = (f"--{k.replace('_', '-')} {v}" for k, v in changed.items())
            return " ".join(shown), plan
    return None


def _candidates(config: Config, n: int) -> Iterator[dict[str, Any]]:
    train, values = config.train, {}
    if n > 1 and config.mesh.fsdp != n:
        share = next(k for k in range(n, 0, -1) if n % k == 0 and train.micro_batch_size % k == 0)
        values |= {"mesh.data": n // share if share > 1 else 1, "mesh.fsdp": share}
        values |= {"mesh.tensor": 1, "mesh.sequence": 1}
        yield dict(values)
    if config.model.remat != "full":
        values |= {"model.remat": "full"}
        yield dict(values)
    if train.loss_chunk is None or train.loss_chunk > 4096:
        values |= {"train.loss_chunk": 4096}
        yield dict(values)
    for size in range(train.micro_batch_size - 1, 0, -1):
        if train.batch_size % size == 0 and (size % n == 0 or size < n):
            if size < n and "mesh.fsdp" in values:
                values |= {"mesh.data": 1, "mesh.fsdp": size}
            yield values | {"train.micro_batch": size}
