"""The floating point operations of a training step, by a formula; pure."""

from __future__ import annotations

from gpt_jax.config import ModelConfig
from gpt_jax.config.known_settings import unknown_settings


def model_flops(config: ModelConfig, n_params: int, tokens: int) -> float | None:
    """Returns the floating point operations of a step: 6 N + 12 L T D per token.

    Forward and backward, attention as if it were not causal, without rematerialisation (Chowdhery
    et al. 2022, appendix B, https://arxiv.org/abs/2204.02311). N does not count parameters that are
    only looked up. None for a model with a setting that this count may not know.
    """
    if unknown_settings(config):
        return None
    looked_up = config.block_size * config.n_embd if config.positions == "learned" else 0
    looked_up += 0 if config.tied else config.vocab_size * config.n_embd
    attention = 12 * config.n_layer * config.block_size * config.n_head * config.head_size
    return float(tokens) * (6 * (n_params - looked_up) + attention)
