"""TrainState: step, parameters and optimizer state; a checkpoint holds exactly these."""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gpt_jax.config import ModelConfig, OptimConfig
from gpt_jax.model import GPT, Params
from gpt_jax.training.optimizer import make_optimizer


class TrainState(flax.struct.PyTreeNode):
    """What training carries from one step to the next, and what a checkpoint holds.

    Attributes:
      step: int32 scalar, optimizer steps taken.
      params: float32 tree of the model's parameters.
      opt_state: the state of the optax chain.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState


def init_state(
    model: ModelConfig, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """Returns the state before the first step."""
    return state_from_params(
        GPT(model).init(key, jnp.zeros((1, 1), jnp.int32))["params"], optimizer
    )


def state_from_params(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step, with these parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params)
    )


@functools.lru_cache(maxsize=8)
def state_shapes(model: ModelConfig, optim: OptimConfig) -> TrainState:
    """Returns the state's shapes and dtypes, as a tree of jax.ShapeDtypeStruct."""
    return jax.eval_shape(lambda: init_state(model, make_optimizer(optim), jax.random.key(0)))
