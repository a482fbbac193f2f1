"""The compiled programs of a run, laid out on its mesh.

They are traced and compiled side by side, in threads, from shapes alone: XLA takes most of the time
before the first step, and it can use more than one core.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt_jax.config import Config
from gpt_jax.data import Split
from gpt_jax.devices import WIDE, compiler_options
from gpt_jax.optim import make_optimizer
from gpt_jax.sharding import make_mesh, make_place_batch, replicated, state_shardings
from gpt_jax.step import (
    Keys,
    TrainState,
    init_state,
    make_eval_step,
    make_keys,
    make_train_chunk,
)


class Programs:
    """What a run executes on its devices.

    Attributes:
      mesh: the devices.
      target: the state's shapes, dtypes and shardings, as a tree of jax.ShapeDtypeStruct.
      n_params: parameters of the model.
    """

    def __init__(self, config: Config, splits: dict[str, Split]):
        """Works out shapes; `start` begins to compile."""
        self._config = config
        self.mesh = make_mesh(config.train.batch_at_once)
        optimizer = make_optimizer(config.optim)

        def initialise(keys: Keys) -> TrainState:
            return init_state(config.model, optimizer, keys.init)

        everywhere = replicated(self.mesh)
        keys = jax.eval_shape(lambda: make_keys(config.seed))
        state = jax.eval_shape(initialise, keys)
        self.n_params = sum(x.size for x in jax.tree.leaves(state.params))
        shardings = state_shardings(state, self.mesh)

        def placed(x: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        self.target = jax.tree.map(placed, state, shardings)
        self._keys_target = jax.tree.map(lambda key: placed(key, everywhere), keys)
        self._make_keys = jax.jit(lambda: make_keys(config.seed), out_shardings=everywhere)
        place = make_place_batch(self.mesh)
        options = compiler_options(
            jax.default_backend(), library_products=config.model.n_embd < WIDE
        )
        self._initialise = jax.jit(initialise, out_shardings=shardings, compiler_options=options)
        self._chunk = jax.jit(
            make_train_chunk(config.model, config.optim, config.train, place),
            static_argnames="steps",
            donate_argnums=0,
            out_shardings=(shardings, None),
            compiler_options=options,
        )
        evaluate = make_eval_step(config.model, config.train, place)
        self._evaluate = jax.jit(
            lambda params, splits, key, step: evaluate(
                params, splits, jax.random.fold_in(key, step)
            ),
            compiler_options=options,
        )
        self._finite = jax.jit(lambda params: jnp.isfinite(optax.tree.norm(params)))
        self._tokens = [jax.device_put(splits[name].tokens, everywhere) for name in splits]
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="compile")
        self._compiled: dict[Any, Future] = {}

    def start(self, step: int) -> None:
        """Begins to compile what a run that goes on from `step` needs first.

        A new run evaluates first; compiling its chunk meanwhile would only slow that down.
        """
        if step == 0:
            self._initialise_program()
        else:
            self._chunk_program(self.chunk_length(step))
        self._evaluate_program()

    def chunk_length(self, step: int) -> int:
        """Returns how many steps the chunk that begins at `step` takes."""
        train = self._config.train
        return min(train.chunk_steps - step % train.chunk_steps, train.steps - step)

    def keys(self) -> Keys:
        """Returns the seed's keys, on every device."""
        return self._make_keys()

    def initialise(self, keys: Keys) -> TrainState:
        """Returns the state before the first step."""
        return self._initialise_program().result()(keys)

    def train_chunk(self, state: TrainState, keys: Keys, steps: int):
        """Takes `steps` steps; the state given is used up. See `step.make_train_chunk`."""
        return self._chunk_program(steps).result()(state, self._tokens[0], keys)

    def wait_for_chunk(self, steps: int) -> float:
        """Returns once the program of a chunk is compiled: the seconds that took."""
        before = time.perf_counter()
        self._chunk_program(steps).result()
        return time.perf_counter() - before

    def evaluate(self, state: TrainState, keys: Keys, step: int) -> jax.Array:
        """Returns the mean losses of random batches of each split; see `step.make_eval_step`."""
        return self._evaluate_program().result()(
            state.params, self._tokens, keys.eval, np.int32(step)
        )

    def is_finite(self, state: TrainState) -> bool:
        """Returns whether every parameter is a finite number."""
        return bool(self._finite(state.params))

    def close(self) -> None:
        """Stops compiling what nobody waits for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _initialise_program(self) -> Future:
        return self._program("initialise", self._initialise, self._keys_target)

    def _evaluate_program(self) -> Future:
        step = jax.ShapeDtypeStruct((), np.int32)
        args = (self.target.params, self._tokens, self._keys_target.eval, step)
        return self._program("evaluate", self._evaluate, *args)

    def _chunk_program(self, steps: int) -> Future:
        args = (self.target, self._tokens[0], self._keys_target)
        return self._program(steps, self._chunk, *args, steps=steps)

    def _program(self, name: str | int, function: Any, *args: Any, **kwargs: Any) -> Future:
        if name not in self._compiled:
            self._compiled[name] = self._pool.submit(
                lambda: function.lower(*args, **kwargs).compile()
            )
        return self._compiled[name]
