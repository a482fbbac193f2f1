"""The memory that a run needs at least, estimated before it starts; the refusal of one too large.

The size of the state is exact, from its shapes. Activations are counted from the settings: what
each block saves for its gradient, and the logits. XLA needs more, for temporary arrays:
`tests/training/test_memory.py` holds the estimate between half and all of XLA's plan for float32 on
a CPU. So a run that is refused would not have fitted; one that starts may still be too large. On a
CPU `check_program` therefore checks XLA's own plan of each compiled program: a GPU raises an error
when it is out of memory, but a CPU's system kills the process without a message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax.config import Config, ModelConfig
from gpt_jax.config.activations import ACTIVATIONS
from gpt_jax.config.known_settings import unknown_settings
from gpt_jax.devices import GIB, available_memory
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.model.attention import QUERY_BLOCK, choose_attention
from gpt_jax.model.dtype import resolve_dtype
from gpt_jax.model.layers import mlp_width
from gpt_jax.model.tuning import choose_tuning
from gpt_jax.parallel.backend import target_backend
from gpt_jax.parallel.mesh import resolve_axis_sizes
from gpt_jax.training.resume import machine_settings
from gpt_jax.training.state import state_shapes

FLOAT32 = INT32 = 4  # bytes
MOST_AT_ONCE = 4096  # sequences: the largest micro-batch that is suggested
SUGGESTIONS = (
    "try --model.remat full, --train.loss-chunk 4096 or a smaller --train.micro-batch, or with "
    "another --run-dir --model.dtype bfloat16"
)


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training needs at least on one device.

    Attributes:
      state: parameters, optimizer state, gradients.
      activations: of the train step; or the batches of an evaluation, if these are larger.
    """

    state: int
    activations: int

    @property
    def total(self) -> int:
        return self.state + self.activations


def estimate_memory(
    config: Config, mesh: tuple[int, int, int, int], backend: str
) -> MemoryEstimate:
    """Returns the bytes that a device needs at least.

    Args:
      config: the settings, with the vocabulary's size and the schedule's length.
      mesh: devices on the axes data, fsdp, tensor and sequence.
      backend: as `target_backend` returns it.
    """
    config, _ = resolve_dtype(config, backend)
    model, train = config.model, config.train
    data, fsdp, tensor, sequence = mesh
    state = state_shapes(model, config.optim)
    gradients = _size(state.params)
    one_pass_loss = choose_tuning(backend, model.n_embd).one_pass_loss
    if train.micro_batch_size < train.batch_size and not one_pass_loss:
        gradients *= 2  # their sum, and those of one micro-batch, which one_pass_loss adds at once
    state_bytes = (_size(state) + gradients) // (fsdp * tensor)
    B = -(-train.micro_batch_size // (data * fsdp))
    T = model.block_size // sequence  # tokens of a sequence on a device, but for attention
    saved_activations, peak_transient = _block_bytes(model, B, T, tensor, backend)
    loss_tokens = B * T
    if train.loss_chunk is not None:
        loss_tokens = min(loss_tokens, max(B, train.loss_chunk // (data * fsdp * sequence)))
    gradient_item = jnp.dtype(model.dtype).itemsize if one_pass_loss else FLOAT32
    logits = (FLOAT32 + gradient_item) * loss_tokens * model.vocab_size  # and their gradient
    step = model.n_layer * saved_activations + max(peak_transient, logits)
    tokens = 2 * train.eval_batches * train.batch_size * (model.block_size + 1)  # of two splits
    return MemoryEstimate(state=state_bytes, activations=max(step, INT32 * tokens))


def _block_bytes(model: ModelConfig, B: int, T: int, tensor: int, backend: str) -> tuple[int, int]:
    """Returns the bytes of a block on one device: (saved for its gradient, alive during it only).

    Args:
      model: the model's settings. One that this estimate does not know counts as activation
        checkpointing of whole blocks, the least that a block saves.
      B: sequences.
      T: tokens of each, but in attention, which sees whole sequences and fewer heads.
      tensor: devices that split heads and the MLP's width.
      backend: as `estimate_memory` takes it.
    """
    D, S, H = model.n_embd, model.block_size, model.n_head // tensor
    item = jnp.dtype(model.dtype).itemsize
    if unknown_settings(model):
        return item * B * T * D, 0
    activation, width = ACTIVATIONS[model.activation], mlp_width(model)
    qkv = (model.n_head + 2 * model.kv_heads) * model.head_size
    up = width * (2 if activation.gated else 1)
    # Per token, of the products with parameters.
    products = qkv // tensor + D + up // tensor + D
    # Two residual sums, two norms, attention's result, the MLP's middle after its activation.
    kept = item * (products + 3 * D + width // tensor)
    tuning = choose_tuning(backend, D)
    unrolled = model.n_layer <= tuning.unroll
    if model.remat == "none" and tuning.recompute_activation and unrolled:
        # Without proj's and down's results, one sum and the norms: as compiled for an H200.
        kept = item * (qkv // tensor + up // tensor + 2 * D + width // tensor)
    elif model.remat == "none":
        kept += 4 * FLOAT32 * D  # two arrays of each norm, float32 whatever the dtype
        if not unrolled and not tuning.recompute_activation:  # in a loop; else these are recomputed
            kept += item * activation.saved_arrays * width // tensor
    attention, _ = choose_attention(model, backend)
    block = B * T * (kept + (FLOAT32 * H * S if attention == "plain" else 0))
    saved, transient = {
        "none": (block, 0),
        "dots": (item * B * T * (D + products), block - item * B * T * products),
        "full": (item * B * T * D, block),
    }[model.remat]
    if attention == "blockwise":
        transient += 2 * FLOAT32 * B * H * T * min(QUERY_BLOCK, S)
    return saved, transient


def fits_whole_params(
    config: Config, mesh: tuple[int, int, int, int], backend: str, limit: float | None
) -> bool:
    """Returns whether devices that shard parameters may gather them once a step, all of them.

    Then their gradients are reduced once a step too, see `sharding.make_map_over_data`. Beside
    what a device needs in any case, that takes a copy of the parameters, one of their gradients
    and one of a micro-batch's. Activations count twice, as `estimate_memory` is a lower bound.
    On a CPU never: its devices share their memory, and have no network between them.

    Args:
      config: the settings.
      mesh: devices on the axes data, fsdp, tensor and sequence.
      backend: as `target_backend` returns it.
      limit: bytes that a device has; None is unknown.
    """
    _, fsdp, tensor, sequence = mesh
    train = config.train
    whole_batch = train.micro_batch_size == train.batch_size
    if fsdp == 1 or tensor * sequence > 1 or whole_batch or backend == "cpu" or limit is None:
        return False
    need = estimate_memory(config, mesh, backend)
    copies = 3 * _size(state_shapes(config.model, config.optim).params)
    return need.state + copies + 2 * need.activations <= limit


def memory_limit(device: jax.Device, root: Path = Path("/")) -> int | None:
    """Returns the bytes that programs may use on a device; None if unknown.

    The devices of a CPU share the machine's memory: for them it is the limit of all together.
    """
    if device.platform == "cpu":
        return available_memory(root)
    return (device.memory_stats() or {}).get("bytes_limit")


def local_need(config: Config, backend: str, n_devices: int | None = None) -> MemoryEstimate:
    """Returns the bytes needed at least of the memory that `memory_limit` gives the size of.

    Args:
      config: the settings.
      backend: as `target_backend` returns it.
      n_devices: that there are; None is jax's.

    Raises:
      ConfigError: the mesh does not fit the devices.
    """
    heads, tokens = config.model.kv_heads, config.model.block_size
    micro_batch = config.train.micro_batch_size
    n_devices = n_devices or len(jax.devices())
    mesh = resolve_axis_sizes(config.mesh, micro_batch, n_devices, heads, tokens)
    estimate = estimate_memory(config, mesh, backend)
    # The devices of a CPU share the memory of their host.
    local_devices = -(-math.prod(mesh) // jax.process_count())
    n = local_devices if backend == "cpu" else 1
    return MemoryEstimate(n * estimate.state, n * estimate.activations)


def check_memory(config: Config, *, resumes: bool = False) -> None:
    """Raises UserError, with a suggestion, if this machine has less memory than the estimate.

    Args:
      config: the settings.
      resumes: the run exists, so that only settings which do not change its results are suggested.
    """
    devices, backend = jax.devices(), target_backend()
    limit = memory_limit(jax.local_devices()[0])
    if limit is None:
        return

    asked = local_need(config, backend)
    if asked.total <= limit:
        return

    candidates = []
    for smaller, text in _smaller_configs(config, resumes):
        with contextlib.suppress(ConfigError):  # too small a batch for the mesh
            candidates.append((local_need(smaller, backend), text))
    # The estimate is a lower bound: prefer a suggestion with room for twice the activations.
    with_room = (text for n, text in candidates if n.total + n.activations <= limit)
    without = (text for n, text in candidates if n.total <= limit)
    suggestion = next(with_room, "") or next(without, "")
    where = "this machine has" if backend == "cpu" else f"{devices[0].device_kind} has"
    raise UserError(
        f"training needs at least {asked.total / GIB:,.1f} GiB of memory, {asked.state / GIB:,.1f} "
        f"for the model and its optimizer and {asked.activations / GIB:,.1f} for what a batch of "
        f"{config.train.micro_batch_size:,} at once computes, and {where} {limit / GIB:,.1f}; "
        + (f"try {suggestion}" if suggestion else "it takes a smaller model or a larger machine")
    )


def program_bytes(plan: Any) -> int:
    """Returns the bytes of a program on a device: arguments, results and temporary arrays.

    Args:
      plan: from `jax.stages.Compiled.memory_analysis`.
    """
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes  # results in donated arguments
        + plan.temp_size_in_bytes
    )


def program_need(program: jax.stages.Compiled) -> int | None:
    """Returns the bytes a program needs of the memory that `memory_limit` gives the size of.

    None where XLA does not say.
    """
    plan = program.memory_analysis()
    if plan is None:
        return None
    if jax.default_backend() != "cpu":
        return program_bytes(plan)
    devices = jax.tree.leaves(program.output_shardings)[0].addressable_devices
    return len(devices) * program_bytes(plan)


class ProgramTooLarge(UserError):
    """A program needs more memory, `need` bytes, than this machine had."""

    need: int


def check_program(program: jax.stages.Compiled, limit: int | None, what: str) -> None:
    """Raises ProgramTooLarge if a program needs more memory than this machine had.

    Args:
      program: compiled; checked on a CPU only.
      limit: bytes available before the run allocated anything; None is unknown.
      what: name of the program, for the message.
    """
    if jax.default_backend() != "cpu" or limit is None:
        return
    need = program_need(program)
    if need is not None and need > limit:
        error = ProgramTooLarge(
            f"{what} would take {need / GIB:,.1f} GiB of memory, and this machine had "
            f"{limit / GIB:,.1f}; {SUGGESTIONS}"
        )
        error.need = need
        raise error


def _smaller_configs(config: Config, resumes: bool = False) -> Iterator[tuple[Config, str]]:
    """Yields (config that needs less memory, its options as text): the same batch, then smaller.

    If a run resumes, only configs that change nothing but rounding.
    """
    changes: list[tuple[str, str, Any]] = [
        ("model", "remat", "full"),
        ("train", "loss_chunk", 4096),
    ]
    if not resumes:
        changes.append(("model", "dtype", "bfloat16"))
    asked, texts = config, []
    for change in [None, *changes]:
        if change is not None:
            group, name, value = change
            now = getattr(getattr(config, group), name)
            if now == value or (name == "loss_chunk" and now is not None):
                continue
            changed = dataclasses.replace(getattr(config, group), **{name: value})
            config = dataclasses.replace(config, **{group: changed})
            texts.append(f"--{group}.{name.replace('_', '-')} {value}")
        train = config.train
        if resumes and "train.micro_batch" not in machine_settings(train):
            yield config, " ".join(texts)
            continue
        for n in range(min(train.micro_batch_size, MOST_AT_ONCE), 0, -1):
            if train.batch_size % n == 0:
                micro = [] if n == train.micro_batch_size else [f"--train.micro-batch {n}"]
                smaller = dataclasses.replace(train, micro_batch=n)
                yield dataclasses.replace(config, train=smaller), " ".join(micro + texts)
    for other, extra in [] if resumes else [(asked, []), (config, texts)]:
        for power in range(other.train.batch_size.bit_length() - 1, -1, -1):
            smaller = dataclasses.replace(other.train, batch_size=2**power, micro_batch=None)
            whole = [] if other.train.micro_batch is None else ["--train.micro-batch none"]
            text = " ".join([f"--train.batch-size {2**power}", *whole, *extra])
            yield dataclasses.replace(other, train=smaller), text


def _size(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
