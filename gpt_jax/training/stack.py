"""Several runs of one shape, computed by one program: their states are stacked along a first axis.

Each device has `per_device` of them: one by the program of a single run, several under `vmap`. The
corpus is shared; seeds and hyperparameters are arguments. A slot whose run has ended, or that never
had one, computes what nobody reads. Which runs step when, `lockstep.py` decides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt_jax import numerics
from gpt_jax.config import Config, ModelConfig, OptimConfig, TrainConfig
from gpt_jax.errors import ConfigError
from gpt_jax.input_pipeline.loader import BatchLoader
from gpt_jax.input_pipeline.sampler import Sampler
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.prng import make_keys
from gpt_jax.training.compiled_steps import abstract_inputs, numbers_of, program_settings
from gpt_jax.training.memory import check_program, memory_limit
from gpt_jax.training.run_setup import RunSetup
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import make_eval_step, make_train_chunk

Arrangement = tuple[int, int]  # of runs: on so many devices of this host, and so many on each


@functools.lru_cache(maxsize=8)
def _jit_stacked(
    model: ModelConfig,
    optim: OptimConfig,
    train: TrainConfig,
    mesh: Mesh,
    per_device: int,
    samplers: tuple[Sampler, Sampler],
    options: tuple[tuple[str, str | int], ...],
) -> tuple[Any, Any, Any]:
    """Returns jax's jitted functions of a stack: put, chunk, evaluate; see `Stack`."""
    chunk = make_train_chunk(model, optim, train, sampler=samplers[0])
    evaluate = make_eval_step(model, train, samplers=samplers)
    on_devices = functools.partial(_on_devices, mesh, per_device)

    def put(stacked, slot, own):
        def on_device(stacked, slot, own):
            first = jax.lax.axis_index("data") * per_device
            is_slot = first + jnp.arange(per_device) == slot

            def choose(x, new):
                return jnp.where(is_slot.reshape(-1, *[1] * new.ndim), new, x)

            return jax.tree.map(choose, stacked, own)

        specs = (P("data"), P(), P())
        return _shard_map(on_device, mesh, specs)(stacked, slot, own)

    def train_chunk(stacked, tokens, keys, hyper, *, steps):
        def one(stacked, keys, hyper, tokens):
            state, recent = stacked
            state, metrics = chunk(state, tokens, keys, recent, hyper, steps=steps)
            return (state, metrics.pop("recent_losses", recent)), metrics

        return on_devices(one, (stacked, keys, hyper), tokens)

    def eval_step(params, splits, keys, step):
        def one(params, key, splits, step):
            return evaluate(params, splits, jax.random.fold_in(key, step))

        return on_devices(one, (params, keys), splits, step)

    jit = functools.partial(jax.jit, compiler_options=dict(options))
    return (
        jax.jit(put, donate_argnums=0),
        jit(train_chunk, static_argnames="steps", donate_argnums=0),
        jit(eval_step),
    )


def _on_devices(mesh: Mesh, per_device: int, one: Callable, stacked: tuple, *shared: Any) -> Any:
    """Returns the results of `one` for each run, stacked; `shared` arguments are all runs'."""

    def on_device(stacked, shared):
        if per_device > 1:
            return jax.vmap(lambda *own: one(*own, *shared))(*stacked)
        own = jax.tree.map(lambda x: x[0], stacked)
        return jax.tree.map(lambda x: x[None], one(*own, *shared))

    return _shard_map(on_device, mesh, (P("data"), P()))(stacked, shared)


def _shard_map(function: Callable, mesh: Mesh, in_specs: tuple[P, ...]) -> Callable:
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=P("data"), check_vma=False
    )


class Stack:
    """The states of several runs of one shape on the devices, and what computes them together.

    Attributes:
      mesh: its devices, all along the axis "data", which splits runs here, not batches.
      loader: the corpus, on each device.
      n_slots: of runs; the first device has the first of them.
    """

    def __init__(self, setup: RunSetup, arrangement: Arrangement):
        """Puts the corpus on the devices.

        Args:
          setup: of any of the runs.
          arrangement: where they are.

        Raises:
          ConfigError: the corpus does not fit on a device, or the settings want it on the host.
        """
        config, (n_devices, per_device) = setup.config, arrangement
        self._config, self._per_device = config, per_device
        self.mesh = make_mesh(n_devices, jax.local_devices()[:n_devices])
        self.n_slots = n_devices * per_device
        self.loader = BatchLoader(config, setup.splits, self.mesh)
        if not self.loader.is_resident:
            self.loader.close()
            raise ConfigError("the corpus is not kept on the devices (data.resident)")
        self._stacked = NamedSharding(self.mesh, P("data"))
        self._memory = memory_limit(jax.local_devices()[0])
        model, optim, train, options = program_settings(config, self.mesh)
        samplers = self.loader.samplers[0], self.loader.samplers[1]
        self._put, self._chunk, self._evaluate = _jit_stacked(
            model, optim, train, self.mesh, per_device, samplers, options
        )
        self._whole = abstract_inputs(config, self.mesh)
        self._states = self._zeros()
        self._programs: dict[Any, Future] = {}
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="compile")
        self.assign([config] * self.n_slots)

    @property
    def arrangement(self) -> str:
        """What a run of the stack records as its mesh."""
        return "1x1x1x1" + (f", {self._per_device} stacked" if self._per_device > 1 else "")

    def _zeros(self) -> Any:
        window = jax.ShapeDtypeStruct((self._config.train.spike_window,), np.float32)

        def zeros():
            empty = lambda x: jnp.zeros((self.n_slots, *x.shape), x.dtype)
            return jax.tree.map(empty, (self._whole.state, window))

        return jax.jit(zeros, out_shardings=self._stacked)()

    def assign(self, configs: Sequence[Config]) -> None:
        """Gives the first slots the seeds and hyperparameters of these runs."""
        configs = [*configs, *[configs[-1]] * (self.n_slots - len(configs))]
        seeds = np.array([config.seeds for config in configs], np.uint32)
        self._keys = jax.jit(jax.vmap(make_keys), out_shardings=self._stacked)(*seeds.T)
        numbers = [numbers_of(config) for config in configs]
        self._hyper = {
            name: jax.device_put(np.array([n[name] for n in numbers], np.float32), self._stacked)
            for name in numbers[0]
        }

    def put(self, slot: int, state: TrainState, recent_losses: np.ndarray | None) -> None:
        """Puts a run's state into a slot; for its losses see `step.make_train_chunk`."""
        if recent_losses is None:
            recent_losses = np.full(self._config.train.spike_window, np.nan, np.float32)
        self._states = self._put(self._states, np.int32(slot), (state, recent_losses))

    def take(self, slot: int) -> TrainState:
        """Returns the state in a slot, on every device of the mesh."""
        device, i = divmod(slot, self._per_device)

        def own(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
            shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
            return jax.device_put(shards[device].data[i], like.sharding)

        return jax.tree.map(own, self._states[0], self._whole.state)

    def train_chunk(self, steps: int) -> dict[str, jax.Array]:
        """Takes so many steps in every slot; returns their metrics, each (n_slots, steps)."""
        program = self.chunk_program(steps).result()
        tokens = self.loader.train_batches(0, steps)
        self._states, metrics = program(self._states, tokens, self._keys, self._hyper)
        return metrics

    def evaluate(self, step: int) -> jax.Array:
        """Returns the mean losses of random batches of each split, (n_slots, 2)."""
        step = 0 if self._config.train.eval_fixed else step
        params, tokens = self._states[0].params, self.loader.eval_batches(step)
        return self.evaluation_program().result()(params, tokens, self._keys.eval, np.int32(step))

    def chunk_program(self, steps: int) -> Future:
        """Returns the program that `train_chunk` runs for so many steps, compiled or soon."""
        args = self._states, self.loader.train_spec(steps), self._keys, self._hyper
        return self._program(steps, self._chunk, *args, steps=steps)

    def evaluation_program(self) -> Future:
        """Returns the program that `evaluate` runs, compiled or soon."""
        args = self._states[0].params, self.loader.eval_spec(), self._keys.eval, np.int32(0)
        return self._program("evaluate", self._evaluate, *args)

    def _program(self, name: str | int, function: Any, *args: Any, **static: Any) -> Future:
        if name not in self._programs:
            specs = jax.tree.map(_spec, args)  # the arrays may be donated meanwhile
            what = name if isinstance(name, str) else "train"
            what = f"the program {what!r} of {self.n_slots} runs"

            def compile_and_check() -> jax.stages.Compiled:
                program = function.lower(*specs, **static).compile()
                check_program(program, self._memory, what)
                return program

            self._programs[name] = self._pool.submit(numerics.carried(compile_and_check))
        return self._programs[name]

    def close(self) -> None:
        """Frees the states, and stops compiling what nobody waits for."""
        self.loader.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        del self._states


def _spec(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))
