"""The exact evaluation: every token of a split but the first, predicted once."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from gpt_jax.config import ModelConfig
from gpt_jax.data import Split, make_windows
from gpt_jax.devices import WIDE, compiler_options
from gpt_jax.metrics import bits_per_byte
from gpt_jax.model import Params
from gpt_jax.sharding import make_mesh, make_place_batch, replicated
from gpt_jax.step import make_window_losses

BATCH_TOKENS = 4096  # computed at once
CALL_BATCHES = 16  # batches in one compiled call


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An exact evaluation of one split.

    Attributes:
      nats_per_token: mean cross-entropy.
      tokens: how many were predicted: all of the split but the first.
      n_bytes: UTF-8 bytes of those tokens.
      stride: from one window's start to the next, in tokens.
    """

    nats_per_token: float
    tokens: int
    n_bytes: int
    stride: int

    @property
    def perplexity(self) -> float:
        """e to the nats; infinite where a float can't hold it."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 709 else math.inf

    @property
    def bits_per_byte(self) -> float:
        return bits_per_byte(self.nats_per_token * self.tokens, self.n_bytes)

    def record(self) -> dict[str, Any]:
        """Returns the figures for JSON."""
        return {
            "nats_per_token": self.nats_per_token,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens_predicted": self.tokens,
            "bytes_predicted": self.n_bytes,
            "stride": self.stride,
        }

    def __str__(self) -> str:
        return (
            f"{self.nats_per_token:.4f} nats a token, perplexity {self.perplexity:.3f}, "
            f"{self.bits_per_byte:.4f} bits a byte ({self.tokens:,} tokens, {self.n_bytes:,} bytes)"
        )


@functools.lru_cache(maxsize=4)
def _window_losses(config: ModelConfig, mesh: jax.sharding.Mesh):
    options = compiler_options(jax.default_backend(), library_products=config.n_embd < WIDE)
    return jax.jit(make_window_losses(config, make_place_batch(mesh)), compiler_options=options)


def evaluate_split(
    config: ModelConfig,
    params: Params,
    split: Split,
    token_bytes: np.ndarray,
    *,
    stride: int | None = None,
) -> Evaluation:
    """Evaluates a model on a whole split; sums in float64.

    Args:
      config: the model's.
      params: the model's, on any devices.
      split: what to predict.
      token_bytes: int32 (V,), UTF-8 bytes a token.
      stride: see `data.make_windows`; None is block_size.

    Raises:
      ConfigError: the stride is not in [1, block_size].
    """
    starts, firsts, lasts = make_windows(len(split.tokens), config.block_size, stride)
    # The batch is the same for any number of devices up to 8, and so are the windows in it.
    batch_size = 8 * max(1, BATCH_TOKENS // config.block_size // 8)
    mesh = make_mesh(batch_size)
    params = jax.device_put(params, replicated(mesh))
    # Padding for the last partial window: read, never counted.
    tokens = np.concatenate([split.tokens, np.zeros(config.block_size, np.int32)])
    tokens = jax.device_put(tokens, replicated(mesh))
    per_call = batch_size * CALL_BATCHES
    total = 0.0
    for at in range(0, len(starts), per_call):
        part = [a[at : at + per_call].astype(np.int32) for a in (starts, firsts, lasts)]
        part = [np.pad(a, (0, per_call - len(a))).reshape(CALL_BATCHES, -1) for a in part]
        losses = _window_losses(config, mesh)(params, tokens, *part)
        total += float(np.asarray(losses, np.float64).sum())
    n_predicted = len(split.tokens) - 1
    return Evaluation(
        nats_per_token=total / n_predicted,
        tokens=n_predicted,
        n_bytes=int(token_bytes[split.tokens[1:]].sum()),
        stride=stride or config.block_size,
    )
