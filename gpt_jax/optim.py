"""The optimizer: an optax chain built from the settings."""

from __future__ import annotations

import optax

from gpt_jax.config import OptimConfig


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Returns AdamW at a constant learning rate, decaying every parameter (PyTorch's default)."""
    return optax.adamw(
        config.learning_rate, config.beta1, config.beta2, weight_decay=config.weight_decay
    )
