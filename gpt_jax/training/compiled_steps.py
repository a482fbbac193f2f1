"""The compiled programs of a run, for its mesh.

They are traced and compiled side by side, in threads, from shapes alone: XLA takes most of the time
before the first step, and it can use more than one core. Runs of equal settings in one process
share them (`jit_functions`).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from gpt_jax import numerics
from gpt_jax.config import Config, ModelConfig, OptimConfig, TrainConfig, fix_schedule
from gpt_jax.devices import WIDE_N_EMBD, compiler_options
from gpt_jax.errors import is_out_of_memory
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.input_pipeline.loader import BatchLoader
from gpt_jax.input_pipeline.sampler import Sampler
from gpt_jax.model import Params
from gpt_jax.model.attention import needs_mesh
from gpt_jax.parallel.backend import target_backend
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.sharding import (
    batch_sharding,
    make_constrain_batch,
    make_map_over_data,
    mesh_context,
    replicated,
    state_shardings,
)
from gpt_jax.prng import Keys, make_keys
from gpt_jax.training.hyperparameters import (
    Hyperparameters,
    hyperparameters,
    optim_structure,
)
from gpt_jax.training.memory import (
    ProgramTooLarge,
    check_program,
    fits_whole_params,
    memory_limit,
    program_need,
)
from gpt_jax.training.optimizer import make_optimizer
from gpt_jax.training.resume import MEASURING, RUN_LENGTH
from gpt_jax.training.state import TrainState, init_state, state_from_params, state_shapes
from gpt_jax.training.step import make_eval_step, make_train_chunk


@dataclasses.dataclass(frozen=True)
class AbstractInputs:
    """Shapes, dtypes and shardings of what a step takes, as trees of jax.ShapeDtypeStruct.

    Attributes:
      state: the state; its own shapes need no memory.
      keys: the seeds' keys, on every device.
      hyper: the numbers of `hyperparameters`, on every device.
      gathered: from a number of steps to the batches that a host has gathered for them.
    """

    state: TrainState
    keys: Keys
    hyper: Hyperparameters
    gathered: Callable[[int], jax.ShapeDtypeStruct]

    @property
    def n_params(self) -> int:
        """Parameters of the model."""
        return sum(x.size for x in jax.tree.leaves(self.state.params))


def abstract_inputs(config: Config, mesh: Mesh) -> AbstractInputs:
    """Returns shapes, dtypes and shardings of a run's state and inputs on a mesh of any devices."""

    def placed(x: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def gathered(steps: int) -> jax.ShapeDtypeStruct:
        shape = steps, config.train.batch_size, config.model.block_size + 1
        return jax.ShapeDtypeStruct(shape, np.int32, sharding=batch_sharding(mesh, axis=1))

    state = state_shapes(config.model, optim_structure(config.optim))
    keys = jax.eval_shape(lambda: make_keys(config.seed))
    number = jax.ShapeDtypeStruct((), np.float32, sharding=replicated(mesh))
    return AbstractInputs(
        state=jax.tree.map(placed, state, state_shardings(state, mesh)),
        keys=jax.tree.map(lambda key: placed(key, replicated(mesh)), keys),
        hyper=dict.fromkeys(_hyperparameters(config), number),
        gathered=gathered,
    )


def _hyperparameters(config: Config) -> dict[str, float]:
    return hyperparameters(fix_schedule(config).optim, config.train)


@dataclasses.dataclass(frozen=True)
class JitFunctions:
    """What a run executes, as jax's jitted functions.

    Attributes:
      make_keys: from seeds, uint32 () each, to their keys; see `prng.make_keys`.
      initialize: from the keys to the state before the first step.
      adopt: from parameters to the state before the first step.
      chunk: see `step.make_train_chunk`.
      evaluate: from parameters, tokens of each split, a key and the step; see
        `step.make_eval_step`.
      is_finite: from parameters to whether each is a finite number.
    """

    make_keys: Any
    initialize: Any
    adopt: Any
    chunk: Any
    evaluate: Any
    is_finite: Any


def jit_train_chunk(config: Config, mesh: Mesh, limit: float | None = None) -> Any:
    """Returns `step.make_train_chunk`'s function for a mesh, to be compiled.

    Its tokens are `AbstractInputs.gathered`. A device has `limit` bytes; None is unknown.
    """
    return _jit_functions(config, mesh, limit).chunk


def _jit_functions(
    config: Config,
    mesh: Mesh,
    limit: float | None,
    samplers: tuple[Sampler, Sampler] | None = None,
) -> JitFunctions:
    whole_params = fits_whole_params(config, tuple(mesh.shape.values()), target_backend(), limit)
    platform = mesh.devices.flat[0].platform
    options = compiler_options(platform, library_products=config.model.n_embd < WIDE_N_EMBD)
    optim, train = optim_structure(config.optim), _train_structure(config.train)
    return jit_functions(
        config.model, optim, train, mesh, samplers, tuple(options.items()), whole_params
    )


def _train_structure(train: TrainConfig) -> TrainConfig:
    """Returns the settings that a program is made of: None for those that no step reads."""
    left = copy.copy(train)
    for name in {*MEASURING, *RUN_LENGTH} - {"train.eval_batches"}:
        group, _, field = name.partition(".")
        if group == "train":
            object.__setattr__(left, field, None)
    if train.spike is not None:
        object.__setattr__(left, "spike", 2.0)  # any: the number is an argument
    return left


@functools.lru_cache(maxsize=8)
def jit_functions(
    model: ModelConfig,
    optim: OptimConfig,
    train: TrainConfig,
    mesh: Mesh,
    samplers: tuple[Sampler, Sampler] | None,
    options: tuple[tuple[str, str | int], ...],
    whole_params: bool = False,
) -> JitFunctions:
    """Returns the functions of a run; jax compiles those of equal arguments once in a process.

    Args:
      model, optim, train: the settings that programs are made of; see `hyperparameters.py`.
      mesh: the devices.
      samplers: of "train" and "val"; None if the tokens are always batches.
      options: XLA's, by name.
      whole_params: see `sharding.make_map_over_data`.
    """
    optimizer = make_optimizer(optim)
    everywhere = replicated(mesh)
    shardings = state_shardings(state_shapes(model, optim), mesh)
    constrain_batch = make_constrain_batch(mesh)
    map_over_data = make_map_over_data(mesh, whole_params=whole_params)
    chunk = make_train_chunk(
        model, optim, train, constrain_batch, samplers and samplers[0], map_over_data
    )
    evaluate = make_eval_step(model, train, constrain_batch, samplers)
    jit = functools.partial(jax.jit, compiler_options=dict(options))

    def train_chunk(state, tokens, keys, recent_losses, hyper, *, steps):  # all are arguments
        return chunk(state, tokens, keys, recent_losses, hyper, steps=steps)

    return JitFunctions(
        make_keys=jax.jit(make_keys, out_shardings=everywhere),
        initialize=jit(
            lambda keys: init_state(model, optimizer, keys.init), out_shardings=shardings
        ),
        adopt=jax.jit(
            lambda params: state_from_params(jax.tree.map(jnp.copy, params), optimizer),
            out_shardings=shardings,
        ),  # a copy: placed arrays may share the host's memory, and the state is donated
        chunk=jit(
            train_chunk,
            static_argnames="steps",
            donate_argnums=0,
            out_shardings=(shardings, everywhere),
        ),
        evaluate=jit(
            lambda params, splits, key, step: evaluate(
                params, splits, jax.random.fold_in(key, step)
            ),
            out_shardings=everywhere,
        ),
        is_finite=jax.jit(
            lambda params: jnp.isfinite(optax.tree.norm(params)), out_shardings=everywhere
        ),
    )


def recent_losses_spec(train: TrainConfig, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of what a chunk knows of the losses before it."""
    shape = (train.spike_window,)
    return jax.ShapeDtypeStruct(shape, np.float32, sharding=replicated(mesh))


def _place(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns an array of the host on the devices, as `like` says; every host has all of it."""
    return jax.make_array_from_callback(like.shape, like.sharding, array.__getitem__)


class CompiledSteps:
    """What a run executes on its devices.

    Attributes:
      mesh: the devices.
      abstract_state: the state's shapes, dtypes and shardings, as a tree of jax.ShapeDtypeStruct.
      n_params: parameters of the model.
      feed: where batches come from.
      layouts: a context in which what computes the model on the mesh is traced.
    """

    def __init__(self, config: Config, splits: dict[str, Dataset]):
        """Works out shapes; `compile_ahead` begins to compile."""
        self._config = config
        self._memory = memory_limit(jax.local_devices()[0])
        self.mesh = make_mesh(
            config.train.micro_batch_size,
            sizes=config.mesh,
            kv_heads=config.model.kv_heads,
            block_size=config.model.block_size,
        )
        self.layouts = functools.partial(mesh_context, self.mesh, kernels=needs_mesh(config.model))
        layout = abstract_inputs(config, self.mesh)
        self.abstract_state, self.n_params, self._keys_target, self._hyper_target = (
            layout.state,
            layout.n_params,
            layout.keys,
            layout.hyper,
        )
        self._hyper = {
            name: _place(np.asarray(value, np.float32), self._hyper_target[name])
            for name, value in _hyperparameters(config).items()
        }
        self.loader = BatchLoader(config, splits, self.mesh)
        self._metrics: Any = None  # of the chunk before
        train_sampler, val_sampler = self.loader.samplers
        samplers = train_sampler, val_sampler
        self._jit = _jit_functions(config, self.mesh, self._memory, samplers)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="compile")
        self._compiled: dict[Any, Future] = {}

    def compile_ahead(self, step: int, *, initializes: bool = True) -> None:
        """Begins to compile what a run that starts at `step` needs first.

        A new run evaluates first; compiling its chunk meanwhile would only slow that down.
        """
        if step == 0 and initializes:
            self.init_program()
        elif step:
            self.chunk_program(self.chunk_length(step))
        self.evaluation_program()
        self.loader.prefetch(step, self.chunk_length(step))

    def chunk_length(self, step: int) -> int:
        """Returns how many steps the chunk that begins at `step` takes."""
        train = self._config.train
        return min(train.chunk_steps - step % train.chunk_steps, train.steps - step)

    def keys(self) -> Keys:
        """Returns the seeds' keys, on every device."""
        return self._jit.make_keys(*map(np.uint32, self._config.seeds))

    def init_state(self, keys: Keys) -> TrainState:
        """Returns the state before the first step."""
        return self.init_program().result()(keys)

    def state_from_params(self, params: Params) -> TrainState:
        """Returns the state before the first step with parameters from the host, NumPy's."""
        return self._jit.adopt(jax.tree.map(_place, params, self.abstract_state.params))

    def train_chunk(
        self,
        state: TrainState,
        keys: Keys,
        step: int,
        steps: int,
        recent_losses: jax.Array | np.ndarray | None = None,
    ):
        """Takes `steps` steps after `step`; the state given is used up. See `step.py`.

        `recent_losses` may be None before the first step, and where `train.spike` is not set.

        Raises:
          UserError: the corpus has an id beyond the vocabulary.
        """
        program = self.chunk_program(steps).result()
        tokens = self.loader.train_batches(step, steps)
        if recent_losses is None:
            recent_losses = np.full(self._config.train.spike_window, np.nan, np.float32)
        state, metrics = program(state, tokens, keys, recent_losses, self._hyper)
        step += steps
        if step < self._config.train.steps:
            self.loader.prefetch(step, self.chunk_length(step), after=self._metrics)
        self._metrics = metrics
        return state, metrics

    def evaluate(self, state: TrainState, keys: Keys, step: int) -> jax.Array:
        """Returns the mean losses of random batches of each split; see `step.make_eval_step`."""
        at = 0 if self._config.train.eval_fixed else step
        return self.evaluation_program().result()(
            state.params, self.loader.eval_batches(at), keys.eval, np.int32(at)
        )

    def is_finite(self, state: TrainState) -> bool:
        """Returns whether every parameter is a finite number."""
        return bool(self._jit.is_finite(state.params))

    def close(self) -> None:
        """Stops compiling and gathering what nobody waits for."""
        self.loader.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def init_program(self) -> Future:
        """Returns the program that makes the state before the first step, compiled or soon."""
        return self._program("initialise", self._jit.initialize, self._keys_target)

    def evaluation_program(self) -> Future:
        """Returns the program that `evaluate` runs, compiled or soon."""
        step = jax.ShapeDtypeStruct((), np.int32)
        args = (self.abstract_state.params, self.loader.eval_spec(), self._keys_target.eval, step)
        return self._program("evaluate", self._jit.evaluate, *args)

    def chunk_program(self, steps: int) -> Future:
        """Returns the program that `train_chunk` runs for so many steps, compiled or soon."""
        recent = recent_losses_spec(self._config.train, self.mesh)
        inputs = (self.abstract_state, self.loader.train_spec(steps), self._keys_target)
        return self._program(
            steps, self._jit.chunk, *inputs, recent, self._hyper_target, steps=steps
        )

    def chunk_bytes(self) -> float:
        """Returns the bytes that the first chunk's program needs, see `memory.program_need`.

        Infinite where the compiler gave up.
        """
        try:
            program = self.chunk_program(self.chunk_length(0)).result()
        except ProgramTooLarge as error:
            return error.need
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return math.inf
        return program_need(program) or 0

    def _program(self, name: str | int, function: Any, *args: Any, **kwargs: Any) -> Future:
        if name not in self._compiled:

            def compile_and_check() -> jax.stages.Compiled:
                with self.layouts():
                    lowered = function.lower(*args, **kwargs)
                program = lowered.compile()
                what = name if isinstance(name, str) else "train"
                check_program(program, self._memory, f"the program {what!r}")
                return program

            self._compiled[name] = self._pool.submit(numerics.carried(compile_and_check))
        return self._compiled[name]
