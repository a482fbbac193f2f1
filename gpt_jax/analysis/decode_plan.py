"""What decoding would need on given devices, from its compiled programs.

`generate_tokens` calls one program for each number of positions that are filled; see
`decoding.filled_positions`. For NVIDIA GPUs each is compiled, for one stream and for those asked
for, and the kernels of one call bound the time of a token. Nothing runs.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.analysis import gpu_bound
from gpt_jax.analysis.compiling import bytes_asked_for, compile_options
from gpt_jax.analysis.gpu_bound import Group, Rates, find_groups
from gpt_jax.analysis.gpu_kernels import find_kernels
from gpt_jax.analysis.topologies import find_gpu, host_devices
from gpt_jax.config import Config, override
from gpt_jax.errors import is_out_of_memory
from gpt_jax.inference.decoding import (
    STREAM_TOKENS,
    Filters,
    decode_state_shapes,
    filled_positions,
    jit_decode,
)
from gpt_jax.model import Params, decoding_params
from gpt_jax.parallel.backend import target_backend
from gpt_jax.parallel.mesh import params_mesh
from gpt_jax.parallel.sharding import replicated, state_shardings
from gpt_jax.training.memory import program_bytes


@dataclasses.dataclass(frozen=True)
class DecodeBound:
    """A lower bound on the time of one token of each stream, and what it is made of.

    A share of a call of `STREAM_TOKENS` tokens, so with its part of what a call does once.

    Attributes:
      streams: decoded at once: the batch.
      positions: of the cache that are read; None is the mean over a whole context.
      launches: kernels.
      seconds: at the rates of `gpu_bound`.
      bytes: read and written.
      flops: of matrix products.
      groups: what the kernels are for, the slowest first; a call's, not a token's.
      compile_seconds: that the program took to trace and compile.
    """

    streams: int
    positions: int | None
    launches: float
    seconds: float
    bytes: float
    flops: float
    groups: tuple[Group, ...] = ()
    compile_seconds: float = 0.0

    def __str__(self) -> str:
        where = "mean" if self.positions is None else f"{self.positions:,}"
        return (
            f"{self.streams:>8,} {where:>10} {self.launches:>9,.0f} {1e6 * self.seconds:>12.1f} "
            f"{self.bytes / 1e6:>9,.1f} {self.flops / 1e9:>9,.3g}"
        )


COLUMNS = ("positions", "launched", "us at least", "MB", "GFLOP")  # of the lines of `DecodeBound`
HEADING = "decoding a token of each stream, by the positions of the cache that are read\n"
HEADING += "{:>8} {:>10} {:>9} {:>12} {:>9} {:>9}".format("streams", *COLUMNS)


@dataclasses.dataclass(frozen=True)
class DecodePlan:
    """What decoding needs.

    Attributes:
      memory: bytes on each device, for the streams asked for and a full context.
      bounds: for an NVIDIA GPU: for one stream and those asked for, each number of positions that
        a program reads, then the mean over a whole context.
    """

    memory: int
    bounds: tuple[DecodeBound, ...] = ()


def plan_decoding(config: Config, params: Params, devices: Sequence[jax.Device]) -> DecodePlan:
    """Compiles the decoder and returns what it needs.

    Args:
      config: the settings; sample.num_samples are the streams asked for.
      params: shapes of the stacked parameters.
      devices: described or real.
    """
    streams, block_size = config.sample.num_samples, config.model.block_size
    gpu = find_gpu(devices[0])
    if gpu is None:
        return DecodePlan(_compile(config, params, devices, None)[0])
    rates, memory = Rates.of(gpu), 0
    bounds: list[DecodeBound] = []
    for n in sorted({1, streams}):
        some = override(config, {"sample.num_samples": n})
        tokens = tokens_by_positions(block_size)
        by_positions: dict[int, DecodeBound] = {}
        for positions in tokens:
            memory, text, seconds = _compile(some, params, devices, positions)
            if text:
                bound = decode_bound(text, rates, n, positions)
                by_positions[positions] = dataclasses.replace(bound, compile_seconds=seconds)
        if len(by_positions) == len(tokens):
            bounds += [*by_positions.values(), mean_bound(by_positions, tokens)]
    return DecodePlan(memory, tuple(bounds))


def tokens_by_positions(block_size: int) -> dict[int, int]:
    """Returns {positions of the cache read: tokens of a whole context decoded with them}."""
    tokens: dict[int, int] = collections.Counter()
    for length in range(0, block_size, STREAM_TOKENS):
        read = filled_positions(length + STREAM_TOKENS, block_size)
        tokens[read] += min(STREAM_TOKENS, block_size - length)
    return dict(tokens)


def decode_bound(text: str, rates: Rates, streams: int, positions: int) -> DecodeBound:
    """Returns the bound of a compiled call of `STREAM_TOKENS` tokens, from its text."""
    groups = find_groups(find_kernels(text), rates)
    total = lambda name: sum(getattr(group, name) for group in groups) / STREAM_TOKENS
    seconds = sum(g.seconds for g in groups if not gpu_bound.overlaps(g)) / STREAM_TOKENS
    return DecodeBound(
        streams, positions, total("launches"), seconds, total("bytes"), total("flops"), groups
    )


def mean_bound(bounds: Mapping[int, DecodeBound], tokens: Mapping[int, int]) -> DecodeBound:
    """Returns the mean of bounds over the tokens that are decoded with each."""
    total = sum(tokens.values())
    mean = lambda name: sum(tokens[n] * getattr(b, name) for n, b in bounds.items()) / total
    streams = next(iter(bounds.values())).streams
    return DecodeBound(
        streams, None, mean("launches"), mean("seconds"), mean("bytes"), mean("flops")
    )


def _compile(
    config: Config, params: Params, devices: Sequence[jax.Device], positions: int | None
) -> tuple[int, str, float]:
    """Returns (bytes on each device that `load_run` uses, the program's text, seconds it took).

    The text is "" where the devices have too little memory to compile it for.
    """
    shapes = _shapes(config, params, devices)
    before = time.perf_counter()
    lowered = jit_decode(devices[0].platform).lower(
        config.model,
        *shapes,
        Filters(temperature=1.0),
        steps=STREAM_TOKENS,
        mode="cached",
        filled=positions,
    )
    try:
        options = compile_options(target_backend(), devices[0] not in jax.local_devices())
        program = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
        return max(weights, int(bytes_asked_for(str(error)))), "", 0.0
    seconds = time.perf_counter() - before
    text = "" if positions is None else program.as_text()
    return program_bytes(program.memory_analysis()), text, seconds


def _shapes(config: Config, params: Params, devices: Sequence[jax.Device]) -> tuple[Any, Any]:
    """Returns the shapes of the parameters and the state, sharded as `load_run` does."""
    model = config.model
    mesh = params_mesh(config.mesh, model.kv_heads, host_devices(devices))
    shardings = state_shardings(params, mesh)
    of_block = jax.tree.map(  # without the axis of layers
        lambda x: NamedSharding(mesh, PartitionSpec(*x.spec[1:])), shardings["blocks"]
    )
    decode_state = decode_state_shapes(model, params, config.sample.num_samples)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (jax.eval_shape(partial(decoding_params, model), params), decode_state),
        (
            {**shardings, "blocks": (of_block,) * model.n_layer},
            jax.tree.map(lambda x: replicated(mesh), decode_state),
        ),
    )
