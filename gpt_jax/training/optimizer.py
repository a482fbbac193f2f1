"""The optimizer: an optax chain built from the settings, and the learning rate over the steps.

Kernels and biases are told apart by path and rank: in blocks they are stacked along a leading axis
of layers, so that a bias is (L, D) and a kernel (L, D, F).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gpt_jax.config import OptimConfig
from gpt_jax.training.hyperparameters import Hyperparameters, hyperparameters

MUON_RMS = 0.2  # of Muon's updates before the learning rate: about AdamW's, so one rate serves both
ADAM_EPSILON = 1e-8


def _adam_direction(config: Any) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, with 1 - beta as numbers of their own; see `hyperparameters.py`."""
    whole = optax.scale_by_adam()

    def update(updates, state, params=None):
        del params
        b1, c1 = config.beta1, config.beta1_complement
        b2, c2 = config.beta2, config.beta2_complement
        mu = jax.tree.map(lambda g, m: c1 * g + b1 * m, updates, state.mu)
        nu = jax.tree.map(lambda g, v: c2 * g**2 + b2 * v, updates, state.nu)
        count = optax.safe_increment(state.count)
        mu_hat = optax.tree.bias_correction(mu, b1, count)
        nu_hat = optax.tree.bias_correction(nu, b2, count)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + ADAM_EPSILON), mu_hat, nu_hat)
        return direction, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(whole.init, update)


def _muon_direction(config: Any) -> optax.GradientTransformation:
    muon, adam = _scale_by_muon(config), _adam_direction(config)
    return optax.partition({"muon": muon, "adam": adam}, muon_labels)


# optim.optimizer -> the direction of an update, before weight decay and the learning rate. Each
# takes the settings of `OptimConfig` by name, whose numbers may be a program's arguments.
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "adamw": _adam_direction,
    "muon": _muon_direction,
}
# optim.schedule -> the learning rate above its floor, from 1 at p = 0 to 0 at p = 1.
DECAY_SHAPES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "cosine": lambda p: (1 + jnp.cos(math.pi * p)) / 2,
    "wsd": lambda p: 1 - p,
}


def make_optimizer(
    config: OptimConfig, hyper: Hyperparameters | None = None
) -> optax.GradientTransformation:
    """Returns AdamW or Muon, with gradient clipping, weight decay and learning rate.

    A step does p -= rate * (u + weight_decay * p), where u is the direction of `scale_by_adam`
    (Kingma and Ba 2015) or, for the matrices of blocks under Muon, of `_scale_by_muon`. The
    gradient is clipped first; `decay` says which parameters decay (PyTorch's default is all).

    Args:
      config: the settings.
      hyper: their numbers, float32 scalars; None for those of `config`.

    Raises:
      ValueError: the schedule has no length; see `config.fix_schedule`.
    """
    decays = {"all": None, "matrices": decay_mask}[config.decay]
    hyper = hyperparameters(config) if hyper is None else hyper
    settings = SimpleNamespace(**{**vars(config), **hyper})
    chain = [
        OPTIMIZERS[config.optimizer](settings),
        optax.add_decayed_weights(settings.weight_decay, decays),
        optax.scale_by_learning_rate(make_learning_rate(config, hyper)),
    ]
    if config.clip is not None:
        chain.insert(0, optax.clip_by_global_norm(settings.clip))
    return optax.chain(*chain)


def make_learning_rate(
    config: OptimConfig, hyper: Hyperparameters | None = None
) -> Any | optax.Schedule:
    """Returns the learning rate: a number where it is constant, else a function of the step.

    Args:
      config: the settings.
      hyper: their numbers, float32 scalars; None for those of `config`.

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
    numbers = hyperparameters(config) if hyper is None else hyper
    if config.schedule == "constant" and not config.warmup_steps:
        return numbers["learning_rate"]

    def rate(step: Any) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        share = jnp.minimum(1.0, (t + 1) * numbers["warmup_reciprocal"])
        if config.schedule != "constant":
            decayed = (t - numbers["decay_start_step"]) * numbers["decay_reciprocal"]
            p = jnp.clip(decayed, 0.0, 1.0)
            shape = DECAY_SHAPES[config.schedule](p)
            share *= numbers["floor"] + numbers["floor_complement"] * shape
        return numbers["learning_rate"] * share

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


def _scale_by_muon(config: Any) -> optax.GradientTransformation:
    """Returns Muon's direction for stacked kernels (L, in, out), each layer's separately.

    The momentum, Nesterov's, is orthogonalised by five Newton-Schulz steps (Jordan et al. 2024)
    and scaled by 0.2 sqrt(max(in, out)), so that its entries are about as large as AdamW's
    (Liu et al. 2025, https://arxiv.org/abs/2502.16982, section 2.2). Queries, keys and values
    are one matrix here, as they are in the model. The moments are optax's, with 1 - beta as a
    number of its own; see `hyperparameters.py`.
    """

    from optax.contrib import MuonDimensionNumbers, scale_by_muon  # takes time to import

    def axes(updates):  # of Muon's parameters; optax.partition masks AdamW's
        return jax.tree.map(lambda _: MuonDimensionNumbers(1, 2), updates)

    # What it is given is its momentum: it only orthogonalises.
    orthogonalise = scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=axes)

    def update(updates, state, params=None):
        del params
        b, c = config.muon_beta, config.muon_beta_complement
        mu = jax.tree.map(lambda g, m: c * g + b * m, updates, state.mu)
        count = optax.safe_increment(state.count)
        ahead = optax.tree.bias_correction(mu, b, optax.safe_increment(count))
        now = optax.tree.bias_correction(updates, b, count)
        # In optax's order: a fused multiply-add rounds the first product otherwise.
        momentum = jax.tree.map(lambda m, g: b * m + c * g, ahead, now)
        direction, _ = orthogonalise.update(momentum, state._replace(mu=momentum))
        scaled = jax.tree.map(lambda u: MUON_RMS * max(u.shape[1:]) ** 0.5 * u, direction)
        return scaled, state._replace(count=count, mu=mu)

    return optax.GradientTransformation(orthogonalise.init, update)
