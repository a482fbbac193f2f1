"""All that the GPU tools take from inside the project: the one file to adapt when that changes.

The other files of this folder import the project through this one only. Importing it imports jax,
so the environment (JAX_PLATFORMS, XLA_FLAGS) must be set before.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax.analysis import plan
from gpt_jax.analysis.gpu_bound import Group, Rates, find_groups, overlaps, purpose
from gpt_jax.analysis.gpu_chips import GpuChip
from gpt_jax.analysis.gpu_kernels import find_kernels
from gpt_jax.analysis.plan import model_flops
from gpt_jax.config import Config, ModelConfig, fix_schedule, load_config, override
from gpt_jax.inference import decoding
from gpt_jax.inference.decoding import STREAM_TOKENS
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.model import GPT, decoding_params
from gpt_jax.model import tuning as tuning_module
from gpt_jax.model.attention import attend, choose_attention, needs_mesh
from gpt_jax.model.dtype import resolve_dtype
from gpt_jax.parallel.backend import compiling_for, target_backend
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.sharding import mesh_context
from gpt_jax.training import compiled_steps
from gpt_jax.training.memory import estimate_memory, memory_limit, program_bytes
from gpt_jax.training.optimizer import make_optimizer
from gpt_jax.training.state import init_state, state_shapes
from gpt_jax.training.step import loss_and_grads

__all__ = [
    "GRAPHS",
    "STREAM_TOKENS",
    "Group",
    "Training",
    "apply_changes",
    "attend",
    "choose_attention",
    "compiling_for",
    "estimate_memory",
    "find_bound",
    "fix_schedule",
    "generate",
    "init_params",
    "load_config",
    "loss_and_gradient",
    "lower_decoder",
    "lower_train_steps",
    "memory_limit",
    "model_flops",
    "override",
    "plan_text",
    "program_bytes",
    "resolve_dtype",
    "target_backend",
]

# CUDA graphs ("command buffers" in XLA). By default XLA leaves loops and conditionals out of them,
# and a product that slices a stacked weight is a command that ends a graph. "chunk" puts a whole
# scanned chunk of steps into one graph. The list replaces XLA's own, so it names every command.
ALL_COMMANDS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL"
GRAPHS: dict[str, dict[str, Any]] = {
    "default": {},
    "step": {"xla_gpu_enable_dynamic_slice_fusion": False},
    "chunk": {
        "xla_gpu_enable_dynamic_slice_fusion": False,
        "xla_gpu_enable_command_buffer": ALL_COMMANDS,
    },
}


# ---- changes of the project that are tried without touching its files


def apply_changes(
    tuning: dict[str, Any] | None = None, options: dict[str, Any] | None = None
) -> None:
    """Tries changes of the project in this process; call it before anything is traced.

    Args:
      tuning: other values of the fields of `gpt_jax.model.tuning.CUDA`.
      options: XLA's compiler options for the train and decode programs, such as GRAPHS["chunk"].
    """
    _replace(tuning_module, "CUDA", dataclasses.replace(tuning_module.CUDA, **(tuning or {})))
    if options:
        for module in (compiled_steps, decoding):
            original = module.compiler_options
            with_options = lambda *args, original=original, **kwargs: (
                original(*args, **kwargs) | options
            )
            _replace(module, "compiler_options", with_options)


def _replace(module: Any, name: str, value: Any) -> None:
    if not hasattr(module, name):
        raise AttributeError(f"{module.__name__} has no {name}: adapt {__file__}")
    setattr(module, name, value)


# ---- programs for described devices


def lower_train_steps(
    config: Config, devices: Sequence[jax.Device], steps: int
) -> tuple[jax.stages.Lowered, dict[str, Any]]:
    """Returns train steps ready to compile, and the facts of them that roofline.py reads."""
    model = config.model
    mesh = make_mesh(
        config.train.micro_batch_size, devices, config.mesh, model.kv_heads, model.block_size
    )
    inputs = compiled_steps.abstract_inputs(config, mesh)
    loss_limit = jax.ShapeDtypeStruct((), np.float32)
    with mesh_context(mesh, kernels=needs_mesh(model)):
        program = compiled_steps.jit_train_chunk(config, mesh)
        data = inputs.gathered(steps), inputs.keys, loss_limit, inputs.hyper
        lowered = program.lower(inputs.state, *data, steps=steps)
    tokens = steps * config.train.batch_size * model.block_size
    facts = {
        "tokens": tokens,
        "steps": steps,
        "n_params": inputs.n_params,
        "model_flops": model_flops(model, inputs.n_params, tokens),
        "mesh": dict(mesh.shape),
    }
    return lowered, facts


def lower_decoder(
    config: Config, device: jax.Device, mode: str
) -> tuple[jax.stages.Lowered, dict[str, Any]]:
    """Returns the decoding of STREAM_TOKENS tokens ready to compile, and the facts of it."""
    model, B = config.model, config.sample.num_samples
    stacked = state_shapes(model, config.optim).params
    params = jax.eval_shape(functools.partial(decoding_params, model), stacked)
    sharding = jax.sharding.SingleDeviceSharding(device)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (params, decoding.decode_state_shapes(model, stacked, B)),
    )
    lowered = decoding.jit_decode(device.platform).lower(
        model, *shapes, decoding.Filters(temperature=1.0), steps=STREAM_TOKENS, mode=mode
    )
    return lowered, {"tokens": STREAM_TOKENS * B, "steps": STREAM_TOKENS}


def plan_text(config: Config, devices: Sequence[jax.Device], backend: str) -> str:
    """Returns the project's plan for described GPUs.

    `make_plan` takes a described device's platform, "gpu", for the backend. That has no compute
    capability, so attention would be planned as plain; here the plan gets `backend`.
    """
    with compiling_for(backend):
        return str(plan._make_plan(config, devices, backend, True, False))


def find_bound(text: str, chip: GpuChip) -> tuple[tuple[Group, ...], dict[str, str]]:
    """Returns the groups of a program's kernels with their bounds, as `plan` has them.

    Args:
      text: of the compiled program, from `jax.stages.Compiled.as_text`.
      chip: whose data sheet gives the rates.

    Returns:
      (the groups that do not overlap with others, the name of its group for each instruction).
    """
    kernels = find_kernels(text)
    groups = tuple(g for g in find_groups(kernels, Rates.of(chip)) if not overlaps(g))
    return groups, {kernel.name: purpose(kernel) for kernel in kernels}


# ---- programs that run


class Training:
    """Train steps of a config on random tokens: compiles at once, allocates with `start`."""

    def __init__(self, config: Config, steps: int):
        config = fix_schedule(config)
        ids = np.random.default_rng(0).integers(0, config.model.vocab_size, 400_000)
        tokens = Dataset.from_shards([ids.astype(np.int32)], len(ids))
        self.config, self.steps = config, steps
        self.tokens = steps * config.train.batch_size * config.model.block_size
        self._steps = compiled_steps.CompiledSteps(config, {"train": tokens, "val": tokens})
        self.n_params = self._steps.n_params
        self._began, self.compile_seconds = time.perf_counter(), 0.0
        self._future = self._steps.chunk_program(steps)

    def wait(self) -> jax.stages.Compiled:
        """Returns the compiled program, once it is."""
        program = self._future.result()
        self.compile_seconds = self.compile_seconds or time.perf_counter() - self._began
        return program

    def start(self) -> None:
        """Allocates and initialises the state."""
        self._keys = self._steps.keys()
        self._state = self._steps.init_state(self._keys)

    def run(self) -> np.ndarray:
        """Takes the steps, waits for them and returns their losses."""
        self._state, metrics = self._steps.train_chunk(self._state, self._keys, 0, self.steps)
        return np.asarray(metrics["loss"])

    def close(self) -> None:
        """Frees the state."""
        self._state = None
        self._steps.close()


def init_params(model: ModelConfig) -> Any:
    """Returns random parameters in the form that decoding takes."""
    tokens = np.zeros((1, 1), np.int32)
    make = lambda: decoding_params(model, GPT(model).init(jax.random.key(0), tokens)["params"])
    return jax.jit(make)()


def generate(model: ModelConfig, params: Any, streams: int, max_new_tokens: int) -> None:
    """Generates tokens after a prompt of 8, and waits for them."""
    tokens = decoding.generate_tokens(
        model, params, np.arange(8), jax.random.key(1), decoding.Filters(temperature=1.0),
        max_new_tokens=max_new_tokens, num_samples=streams,
    )  # fmt: skip
    for _ in tokens:
        pass


def loss_and_gradient(config: Config, batch: np.ndarray) -> Callable[[jax.Device, str], Any]:
    """Returns a function of a device and a matrix product precision: (loss, gradient), NumPy's."""
    optimizer = make_optimizer(config.optim)
    init = lambda: init_state(config.model, optimizer, jax.random.key(0)).params
    compute = jax.jit(lambda p: loss_and_grads(config.model, p, batch, None, config.train))
    with jax.default_device(jax.devices("cpu")[0]):
        params = jax.tree.map(np.asarray, jax.jit(init)())

    def on(device: jax.Device, precision: str) -> Any:
        with jax.default_device(device), jax.default_matmul_precision(precision):
            return jax.tree.map(np.asarray, compute(jax.device_put(params, device)))

    return on
