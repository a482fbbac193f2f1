"""The layers that compute each position by itself: dense, norms, MLP, RoPE, dropout.

None of them uses the cache. Letters in names are those of `gpt.py`, which combines the layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt_jax.config import ModelConfig
from gpt_jax.config.activations import ACTIVATIONS
from gpt_jax.model.tuning import choose_tuning
from gpt_jax.parallel.backend import target_backend
from gpt_jax.parallel.sharding import constrain

IDS_AT_ONCE = 4096  # whose gradients one product sums, see `look_up`
WEIGHT_INIT = nn.initializers.normal(stddev=0.02)  # GPT-2's; biases start at zero


def residual_init(config: ModelConfig) -> nn.initializers.Initializer:
    """Returns the initialiser of the residual projections, proj and down.

    GPT-2 divides by the square root of the number of residual sums, 2 n_layer (Radford et al. 2019,
    section 2.3).
    """
    if not config.residual_init_scale:
        return WEIGHT_INIT
    return nn.initializers.normal(stddev=0.02 * (2 * config.n_layer) ** -0.5)


def matmul(x: jax.Array, kernel: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Returns x W for a float32 kernel W, multiplied in x's dtype and returned as `dtype`.

    For mixed precision: the kernel's gradient, a sum over all tokens and devices, is float32.
    """
    if x.dtype == jnp.float32:
        return _with_enough_rows(lambda x: _product(x, kernel), x)
    return _with_enough_rows(lambda x: _mixed_affine(jnp.dtype(dtype), x, kernel, None), x)


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Returns x W + b for float32 parameters, in x's dtype; their gradients are float32 sums."""
    if x.dtype == jnp.float32:
        y = _with_enough_rows(lambda x: _product(x, kernel), x)
        return y if bias is None else y + bias
    return _with_enough_rows(lambda x: _mixed_affine(x.dtype, x, kernel, bias), x)


def _with_enough_rows(product: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Returns product(x), of rows padded with zeros where there are too few to be fast."""
    n = x.size // x.shape[-1]
    least = choose_tuning(target_backend(), x.shape[-1]).least_rows
    if n >= least:
        return product(x)
    rows = jnp.pad(x.reshape(n, x.shape[-1]), ((0, least - n), (0, 0)))
    return product(rows)[:n].reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns x W. Of the two that multiply to the gradient of W, the narrower is transposed.

    On a CPU the transpose is a copy. XLA computes in it, in its slow order, whatever elementwise
    operations lead to it: of the wider, an MLP's activation or its derivative.
    """
    return _product_forward(x, kernel)[0]


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(saved, gradient):
    x, kernel = saved
    tokens = tuple(range(x.ndim - 1))
    of_x = jax.lax.dot_general(gradient, kernel, (((x.ndim - 1,), (1,)), ((), ())))
    over_tokens = (tokens, tokens), ((), ())
    if x.shape[-1] <= gradient.shape[-1]:
        return of_x, jax.lax.dot_general(x, gradient, over_tokens)
    return of_x, jax.lax.dot_general(gradient, x, over_tokens).T


_product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mixed_affine(dtype, x, kernel, bias):
    return _mixed_affine_forward(dtype, x, kernel, bias)[0]


def _mixed_affine_forward(dtype, x, kernel, bias):
    kernel = kernel.astype(x.dtype)
    y = jnp.dot(x, kernel, preferred_element_type=dtype)
    return y if bias is None else y + bias.astype(dtype), (x, kernel, bias is None)


def _mixed_affine_backward(dtype, saved, gradient):
    x, kernel, no_bias = saved
    tokens = tuple(range(x.ndim - 1))
    of_bias = None if no_bias else gradient.astype(jnp.float32).sum(tokens)
    # Of logits it is float32. Rounded, both products take the fast path of matrix units; a CPU has
    # none, and XLA no bfloat16 product there whose float32 result is transposed.
    if target_backend() != "cpu":
        gradient = gradient.astype(x.dtype)
    of_x = jax.lax.dot_general(
        gradient, kernel, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=x.dtype
    )
    of_kernel = jax.lax.dot_general(
        x, gradient, ((tokens, tokens), ((), ())), preferred_element_type=jnp.float32
    )
    return of_x, of_kernel, of_bias


_mixed_affine.defvjp(_mixed_affine_forward, _mixed_affine_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def look_up(dtype: str, embedding_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """Returns the embedding of each id; its gradient is matrix products, no sum by index.

    For reproducible programs on a GPU, where XLA would sort all entries of the gradient for that
    sum. A block of ids has a product: which tokens have each of them, times the gradient.

    Args:
      dtype: the model's. The gradient was rounded to it before, and is multiplied in it.
      embedding_VD: float32.
      ids_BT: integers.
    """
    return jnp.take(embedding_VD, ids_BT, axis=0)


def _look_up_forward(dtype, embedding_VD, ids_BT):
    return look_up(dtype, embedding_VD, ids_BT), (ids_BT, len(embedding_VD))


def _look_up_backward(dtype, saved, gradient_BTD):
    ids_BT, V = saved
    gradient_ND = gradient_BTD.reshape(-1, gradient_BTD.shape[-1]).astype(dtype)

    def of_block(first: jax.Array) -> jax.Array:
        ids = first + jnp.arange(min(V, IDS_AT_ONCE))
        is_id = (ids[:, None] == ids_BT.reshape(-1)).astype(dtype)
        return jnp.dot(is_id, gradient_ND, precision="highest", preferred_element_type=jnp.float32)

    of_blocks = jax.lax.map(of_block, jnp.arange(0, V, IDS_AT_ONCE))
    return of_blocks.reshape(-1, gradient_ND.shape[-1])[:V], None


look_up.defvjp(_look_up_forward, _look_up_backward)


@jax.custom_vjp
def add_positions(x_BTD: jax.Array, position_TD: jax.Array) -> jax.Array:
    """Returns x + position for every sequence.

    The gradient of position is a sum over B. On a GPU, XLA gives every array of the model a slow
    layout for the sake of a sum of 32 or more, so it is a sum of smaller ones there.
    """
    return x_BTD + position_TD


def _add_positions_backward(_, gradient_BTD):
    tuning = choose_tuning(target_backend(), gradient_BTD.shape[-1])
    n = tuning.most_summed or len(gradient_BTD)
    parts = [gradient_BTD[i : i + n].sum(axis=0) for i in range(0, len(gradient_BTD), n)]
    return gradient_BTD, functools.reduce(jnp.add, parts)


add_positions.defvjp(lambda x, position: (x + position, None), _add_positions_backward)


class Dense(nn.Module):
    """`affine` with parameters; with `cuts`, a list of its parts as jnp.split cuts the features.

    Each part is then a matrix product of its own.
    """

    features: int
    use_bias: bool
    kernel_init: nn.initializers.Initializer = WEIGHT_INIT
    cuts: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if not self.cuts:
            return affine(x, kernel, bias)
        kernels = jnp.split(kernel, self.cuts, axis=1)
        biases = [None] * len(kernels) if bias is None else jnp.split(bias, self.cuts)
        return [affine(x, *parameters) for parameters in zip(kernels, biases, strict=True)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def layer_norm(
    dtype, epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """Returns (x - mean) / sqrt(variance + epsilon) * scale + bias (Ba et al. 2016).

    Computed in float32 and returned as dtype. The mean is subtracted before it is squared: of
    E[x^2] - E[x]^2 no digit is left where the mean is far above the spread. The gradient saves x
    and two numbers for each position; written out, it is faster on a CPU than what jax derives
    (benchmarks/LOG.md).
    """
    return _layer_norm_forward(dtype, epsilon, x, scale, bias)[0]


def _layer_norm_forward(dtype, epsilon, x, scale, bias):
    mean, variance = _moments(x)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (x - mean) * (inverse * scale)
    y = y if bias is None else y + bias
    return y.astype(dtype), (x, mean, inverse, scale, bias is None)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean and the variance of (..., D), float32 (..., 1) each.

    One pass sums the distances d from the first entry and their squares (Chan, Golub and LeVeque
    1983, https://doi.org/10.1080/00031305.1983.10483115). The first d is 0, so E[d]^2 is at most D
    times the variance, and the relative error of E[d^2] - E[d]^2 some D roundings.
    """
    if not choose_tuning(target_backend(), x.shape[-1]).one_pass_norm:
        mean = x.astype(jnp.float32).mean(axis=-1, keepdims=True)
        return mean, jnp.square(x - mean).mean(axis=-1, keepdims=True)
    first = x[..., :1].astype(jnp.float32)
    d = x.astype(jnp.float32) - first
    mean = d.mean(axis=-1, keepdims=True)
    variance = jnp.square(d).mean(axis=-1, keepdims=True) - jnp.square(mean)
    return first + mean, jnp.maximum(variance, 0.0)


def _layer_norm_backward(dtype, epsilon, saved, gradient):
    x, mean, inverse, scale, no_bias = saved
    normed, gradient = (x - mean) * inverse, gradient.astype(jnp.float32)
    scaled = gradient * scale
    along_mean = scaled.mean(axis=-1, keepdims=True)
    along_normed = (scaled * normed).mean(axis=-1, keepdims=True)
    of_x = (scaled - along_mean - normed * along_normed) * inverse
    tokens = tuple(range(x.ndim - 1))
    of_scale = (gradient * normed).sum(tokens)
    return of_x.astype(x.dtype), of_scale, None if no_bias else gradient.sum(tokens)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nn.Module):
    """`layer_norm` with its parameters."""

    epsilon: float
    use_bias: bool
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(jnp.dtype(self.dtype), self.epsilon, x, scale, bias)


def rms_norm(
    config: ModelConfig, name: str, dtype: jax.typing.DTypeLike = jnp.float32
) -> nn.RMSNorm:
    """Returns x / sqrt(mean(x^2) + norm_epsilon) * scale (Zhang and Sennrich 2019).

    Computed in float32 and returned as dtype, as is `make_norm`.
    """
    return nn.RMSNorm(epsilon=config.norm_epsilon, dtype=dtype, name=name)


def make_norm(
    config: ModelConfig, name: str, dtype: jax.typing.DTypeLike = jnp.float32
) -> nn.Module:
    """Returns the norm that the config asks for; RMSNorm never has a bias."""
    if config.norm == "rms":
        return rms_norm(config, name, dtype)
    if config.norm == "layer":
        return LayerNorm(config.norm_epsilon, config.bias, dtype, name=name)
    raise ValueError(f"model.norm={config.norm!r} has no layer here")


def apply_rope(x: jax.Array, position_T: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary position embedding (RoPE; Su et al. 2021, https://arxiv.org/abs/2104.09864).

    Rotates queries or keys by their positions. Entry i is paired with entry i + K / 2, as in
    GPT-NeoX and Llama (the paper pairs neighbours: the same up to the order of entries). At
    position t a pair is rotated by t * base^(-2 i / K) radians, so the product of a query and a
    key depends on the distance of their positions only.

    Args:
      x: (..., T, K), K even; rotated in float32, returned in its dtype.
      position_T: integers.
    """
    half = x.shape[-1] // 2
    angle_TI = position_T[:, None] * base ** (-jnp.arange(half) / half)  # I = K / 2
    cos_TI, sin_TI = jnp.cos(angle_TI), jnp.sin(angle_TI)
    a, b = x[..., :half], x[..., half:]
    rotated = jnp.concatenate([a * cos_TI - b * sin_TI, b * cos_TI + a * sin_TI], axis=-1)
    return rotated.astype(x.dtype)


def mlp_width(config: ModelConfig) -> int:
    """Returns F: model.mlp_width, or 4 D; of a gated MLP 8/3 D, rounded to a multiple of 8.

    So its three matrices of D x F hold about as many parameters as two of D x 4 D.
    """
    if config.mlp_width is not None:
        return config.mlp_width
    if ACTIVATIONS[config.activation].gated:
        return 8 * max(1, round(config.n_embd / 3))
    return 4 * config.n_embd


class MLP(nn.Module):
    """down(f(up(x))), wider inside; with a gated activation down(f(gate(x)) * up(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, *, deterministic: bool, first_row: jax.Array | None = None):
        c = self.config
        D, F = x_BTD.shape[-1], mlp_width(c)
        activation = ACTIVATIONS[c.activation]
        function = functools.partial(activation.function, jax)
        if choose_tuning(target_backend(), D).recompute_activation:
            function = jax.checkpoint(function)
        h_BTF = Dense(F, use_bias=c.bias, name="up")(x_BTD)
        if activation.gated:
            h_BTF *= function(Dense(F, use_bias=c.bias, name="gate")(x_BTD))
        else:
            h_BTF = function(h_BTF)
        h_BTF = constrain(h_BTF, "batch", "time", "width")
        y_BTD = Dense(D, use_bias=c.bias, kernel_init=residual_init(c), name="down")(h_BTF)
        return Dropout(c.dropout, deterministic)(y_BTD, first_row)


def dropout_mask(
    shape: tuple[int, ...], words: jax.Array, rate: float, first_row: jax.Array | None = None
) -> jax.Array:
    """Returns a dropout mask: True where an entry is kept, with probability 1 - rate.

    The bits come from a counter-based hash, not from threefry: each entry's index, times one random
    word made odd, plus the other, goes through the 32-bit integer mixer "lowbias32" (C. Wellons,
    https://nullprogram.com/blog/2018/07/31/). XLA fuses it into the multiplication that uses it, so
    no mask is written to memory, and training is faster. It is not a cryptographic generator.
    `tests/model/test_layers.py` checks its keep rate, the correlation of neighbours and that of
    masks under related words. Indices repeat after 2^32 entries.

    Args:
      shape: shape of the mask.
      words: uint32 (2,), from jax.random.bits; they and the shape determine the mask.
      rate: probability to drop an entry, in [0, 1).
      first_row: int32 scalar; the mask is that of a larger array from this row of its first axis
        on. None is 0.
    """
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        if axis == 0 and first_row is not None:
            index += first_row.astype(jnp.uint32) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    bits = index * (words[1] | 1) + words[0]
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    bits = bits ^ (bits >> 16)
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


class Dropout(nn.Module):
    """Drops entries with probability `rate` and scales the others by 1 / (1 - rate).

    Hinton et al. 2012, https://arxiv.org/abs/1207.0580. Needs the rng stream "dropout" unless
    `deterministic`. For `first_row` see `dropout_mask`.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, first_row: jax.Array | None = None) -> jax.Array:
        if self.deterministic or self.rate == 0.0:
            return x
        words = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
        mask = dropout_mask(x.shape, words, self.rate, first_row)
        return jnp.where(mask, x / (1.0 - self.rate), 0.0)
