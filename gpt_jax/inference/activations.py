"""What the model computes inside for a prompt: the residual stream and the attention weights.

The model is run as it is, block after block; what it passes on is written down on the way.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from gpt_jax import numerics
from gpt_jax.config import ModelConfig
from gpt_jax.errors import UserError
from gpt_jax.inference.generation import encode_prompt
from gpt_jax.model import Params, forward, init_cache
from gpt_jax.model.gpt import GPT, Attention, Block
from gpt_jax.model.layers import Dropout
from gpt_jax.run.load import Run


@dataclasses.dataclass(frozen=True)
class Activations:
    """What a model computed for a prompt of T tokens; float32 NumPy arrays but for the ids.

    Attributes:
      ids: int32 (T,), the tokens of the prompt.
      residual: (n_layer + 1, T, n_embd), the residual stream: the embeddings, then the output of
        each block. The final norm and the output head make the logits of the last.
      attention: (n_layer, n_head, T, T), attention weights: row t is how much position t attends
        to each position up to its own, and sums to 1. They are of the model's dtype before.
      logits: (T, vocab_size), of the token that follows each position.
    """

    ids: np.ndarray
    residual: np.ndarray
    attention: np.ndarray
    logits: np.ndarray


@numerics.fixed()
def activations(run: Run, prompt: str, *, special: bool = False) -> Activations:
    """Returns the activations of a run's model for a prompt.

    Attention is computed by the plain implementation, whatever trained the model: kernels keep no
    weights. n_layer n_head T block_size numbers must fit the device's memory.

    Args:
      run: from `train` or `load_run`.
      prompt: text of at most block_size tokens; an empty one is as in `stream`.
      special: see `stream`.

    Raises:
      UserError: the tokenizer can't encode the prompt, or it is too long.
    """
    ids, config = encode_prompt(run.tokenizer, prompt, special), run.config.model
    if len(ids) > config.block_size:
        raise UserError(
            f"the prompt has {len(ids)} tokens, and model.block_size={config.block_size}; use a "
            "shorter one"
        )
    found = _recorded(config, run.decode_params, ids.astype(np.int32)[None])
    return Activations(ids.astype(np.int32), *map(np.asarray, found))


@functools.partial(jax.jit, static_argnums=0)
def _recorded(
    config: ModelConfig, params: Params, tokens_1T: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the residual stream, attention weights and logits; see `Activations`."""
    residual, weights = [], []

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module, output = context.module, call(*args, **kwargs)
        if isinstance(module, Block):
            residual.append(output[0])
        elif isinstance(module, Dropout) and isinstance(module.parent, GPT):  # of the embeddings
            residual.append(output)
        elif isinstance(module.parent, Attention) and module.name == "Dropout_0":
            weights.append(output)  # the attention's other dropout is of its output
        return output

    T = tokens_1T.shape[1]
    with nn.intercept_methods(record):  # an empty cache: blocks one by one, outside a scan
        cache = init_cache(config, 1)
        logits_1TV, _ = forward(config, params, tokens_1T, cache=cache)
    # Query heads that share a key/value head are concatenated along time; see `attention._plain`.
    attention = [w[..., :T].reshape(config.n_head, T, T) for w in weights]
    stack = functools.partial(jax.numpy.stack, dtype="float32")
    return stack([x[0] for x in residual]), stack(attention), logits_1TV[0]
