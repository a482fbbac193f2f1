"""The optimizer: an optax chain built from the settings, and the learning rate over the steps.

Kernels and biases are told apart by path and rank: in blocks they are stacked along a leading axis
of layers, so that a bias is (L, D) and a kernel (L, D, F).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gpt_jax.config import OptimConfig

MUON_RMS = 0.2  # of Muon's updates before the learning rate: about AdamW's, so one rate serves both


def _adam_direction(config: OptimConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.beta1, config.beta2)


def _muon_direction(config: OptimConfig) -> optax.GradientTransformation:
    muon, adam = _scale_by_muon(config.muon_beta), _adam_direction(config)
    return optax.partition({"muon": muon, "adam": adam}, muon_labels)


# optim.optimizer -> the direction of an update, before weight decay and the learning rate.
OPTIMIZERS: dict[str, Callable[[OptimConfig], optax.GradientTransformation]] = {
    "adamw": _adam_direction,
    "muon": _muon_direction,
}
# optim.schedule -> the learning rate above its floor, from 1 at p = 0 to 0 at p = 1.
DECAY_SHAPES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "cosine": lambda p: (1 + jnp.cos(math.pi * p)) / 2,
    "wsd": lambda p: 1 - p,
}


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Returns AdamW or Muon, with gradient clipping, weight decay and learning rate.

    A step does p -= rate * (u + weight_decay * p), where u is the direction of `scale_by_adam`
    (Kingma and Ba 2015) or, for the matrices of blocks under Muon, of `_scale_by_muon`. The
    gradient is clipped first; `decay` says which parameters decay (PyTorch's default is all).

    Raises:
      ValueError: the schedule has no length; see `config.fix_schedule`.
    """
    decays = {"all": None, "matrices": decay_mask}[config.decay]
    chain = [
        OPTIMIZERS[config.optimizer](config),
        optax.add_decayed_weights(config.weight_decay, decays),
        optax.scale_by_learning_rate(make_learning_rate(config)),
    ]
    if config.clip is not None:
        chain.insert(0, optax.clip_by_global_norm(config.clip))
    return optax.chain(*chain)


def make_learning_rate(config: OptimConfig) -> float | optax.Schedule:
    """Returns the learning rate: a number where it is constant, else a function of the step.

    Linear warmup, then a schedule. Step t, counted from 0, has the learning rate
    learning_rate * warmup(t) * (floor + (1 - floor) * shape(t)):

        warmup(t) = min(1, (t + 1) / (warmup_steps + 1))
        shape(t) = (1 + cos(pi p)) / 2   for cosine, p from 0 after warmup to 1 at schedule_steps
        shape(t) = 1 - p                 for wsd, p from 0 to 1 over decay_steps before that

    Loshchilov and Hutter 2017 (https://arxiv.org/abs/1608.03983) without restarts; Hu et al. 2024
    (https://arxiv.org/abs/2404.06395, section 4.2), here with linear decay.

    Raises:
      ValueError: a schedule other than constant has no length.
    """
    if config.schedule == "constant" and not config.warmup_steps:
        return config.learning_rate
    start, end = config.constant_steps, config.schedule_steps

    def rate(step: Any) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        share = jnp.minimum(1.0, (t + 1) / (config.warmup_steps + 1))
        if end is not None and config.schedule != "constant":
            p = jnp.clip((t - start) / (end - start), 0.0, 1.0)
            share *= config.floor + (1 - config.floor) * DECAY_SHAPES[config.schedule](p)
        return config.learning_rate * share

    return rate


def layer_ndim(path: tuple[Any, ...], leaf: Any) -> int:
    """Returns the rank of a parameter, not counting the axis of layers."""
    return leaf.ndim - (getattr(path[0], "key", None) == "blocks")


def decay_mask(params: Any) -> Any:
    """Returns a tree like `params`: True for kernels and embeddings, of rank 2 per layer."""
    return jax.tree_util.tree_map_with_path(lambda path, x: layer_ndim(path, x) == 2, params)


def muon_labels(params: Any) -> Any:
    """Returns a tree like `params`: "muon" for the kernels of blocks, "adam" for all else.

    Embeddings, positions and the output head are matrices too, but act on tokens one by one;
    Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon) leave them to AdamW.
    """

    def label(path, leaf):
        in_blocks = getattr(path[0], "key", None) == "blocks"
        return "muon" if in_blocks and layer_ndim(path, leaf) == 2 else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


def _scale_by_muon(beta: float) -> optax.GradientTransformation:
    """Returns Muon's direction for stacked kernels (L, in, out), each layer's separately.

    The momentum, Nesterov's, is orthogonalised by five Newton-Schulz steps (Jordan et al. 2024)
    and scaled by 0.2 sqrt(max(in, out)), so that its entries are about as large as AdamW's
    (Liu et al. 2025, https://arxiv.org/abs/2502.16982, section 2.2). Queries, keys and values
    are one matrix here, as they are in the model.
    """

    from optax.contrib import MuonDimensionNumbers, scale_by_muon  # takes time to import

    def axes(updates):  # of Muon's parameters; optax.partition masks AdamW's
        return jax.tree.map(lambda _: MuonDimensionNumbers(1, 2), updates)

    def match_adamw(updates, params=None):
        del params
        return jax.tree.map(lambda u: MUON_RMS * max(u.shape[1:]) ** 0.5 * u, updates)

    orthogonal = scale_by_muon(beta=beta, weight_dimension_numbers=axes)
    return optax.chain(orthogonal, optax.stateless(match_adamw))
