"""The GPT: a decoder-only transformer as a flax.linen module.

It maps tokens to logits and does nothing else: no loss, no sampling, no sharding rules, no files.
Read `step.py` next for how it is trained, `sample.py` for how it writes text.

Letters in names give the shape of an array (`x_BTD` is batch, time, embedding):

    B batch            T time: the tokens fed in now        S time held in the cache
    D n_embd           H heads                              K head size, D / H
    F MLP width, 4 D   L layers                             V vocabulary
    N sequences times heads, B H

Parameters of the blocks are stacked along a leading axis L, whatever the depth, so that one table
of sharding rules and one checkpoint layout serve every size.
"""

from __future__ import annotations

import operator
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from gpt_jax.config import ModelConfig

Params = Any  # the tree under "params": nested dicts of float32 arrays
WEIGHT_INIT = nn.initializers.normal(stddev=0.02)  # GPT-2's; biases start at zero


class Cache(flax.struct.PyTreeNode):
    """Keys and values of the tokens seen so far: what decoding carries from one token to the next.

    Attributes:
      k_NSK: keys, float32; S is block_size. Entries at positions >= length are not valid yet. One
        array a layer, and sequences and heads in one axis: so XLA updates each in place, where
        stacked layers, or a batch axis of 1, would cost a copy of all of it for every token.
      v_NSK: values, likewise.
      length: int32 scalar, how many positions are valid; the next token's position.
    """

    k_NSK: tuple[jax.Array, ...]
    v_NSK: tuple[jax.Array, ...]
    length: jax.Array


def init_cache(config: ModelConfig, batch_size: int) -> Cache:
    """Returns an empty cache for `batch_size` sequences of at most `config.block_size` tokens."""
    c = config
    empty = (jnp.zeros((batch_size * c.n_head, c.block_size, c.n_embd // c.n_head)),) * c.n_layer
    return Cache(k_NSK=empty, v_NSK=empty, length=jnp.zeros((), jnp.int32))


def unstack_blocks(params: Params) -> Params:
    """Returns params with a tuple of each block's own instead of stacked arrays.

    Decoding does this once, before its loop: taking a block out of the stack costs a copy.
    """
    stacked = params["blocks"]
    if isinstance(stacked, tuple):
        return params
    n_layer = len(jax.tree.leaves(stacked)[0])
    layers = (jax.tree.map(operator.itemgetter(i), stacked) for i in range(n_layer))
    return {**params, "blocks": tuple(layers)}


def dropout_mask(shape: tuple[int, ...], words: jax.Array, rate: float) -> jax.Array:
    """Draws a dropout mask: True, with probability 1 - rate, where an entry is kept.

    The bits come from a counter-based hash rather than from threefry: each entry's index, times one
    random word made odd, plus the other, goes through the 32-bit integer mixer "lowbias32"
    (C. Wellons, https://nullprogram.com/blog/2018/07/31/). XLA fuses that into the multiplication
    it feeds, so no mask is ever written to memory, and that makes training faster. It is not a
    cryptographic generator. `tests/test_model.py` checks its keep rate, the correlation of
    neighbours and that of masks under related words. Indices repeat after 2^32 entries.

    Args:
      shape: shape of the mask.
      words: uint32 (2,), drawn by jax.random.bits; they and the shape alone decide the mask.
      rate: share of entries to drop, in [0, 1).
    """
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    bits = index * (words[1] | 1) + words[0]
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    bits = bits ^ (bits >> 16)
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


class Dropout(nn.Module):
    """Drops entries with probability `rate` and scales the others by 1 / (1 - rate).

    Hinton et al. 2012, https://arxiv.org/abs/1207.0580. Needs the rng stream "dropout" unless
    `deterministic`.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0.0:
            return x
        words = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
        return jnp.where(dropout_mask(x.shape, words, self.rate), x / (1.0 - self.rate), 0.0)


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017, section 3.2)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, cached, *, deterministic: bool, last_only: bool = False):
        """Attends from x to itself, or to what is cached and itself.

        Args:
          x_BTD: float32.
          cached: None, or (k_NSK, v_NSK, length); the T tokens then stand at positions
            length .. length + T - 1.
          deterministic: no dropout.
          last_only: compute the output of the last position alone (T is then 1 in the result).

        Returns:
          (float32 (B, T, D), None or the new (k_NSK, v_NSK)).
        """
        c = self.config
        B, T, D = x_BTD.shape
        H, K = c.n_head, D // c.n_head
        qkv_BTE = nn.Dense(3 * D, use_bias=False, kernel_init=WEIGHT_INIT, name="qkv")(x_BTD)
        q, k, v = (
            jnp.moveaxis(part_BTD.reshape(B, T, H, K), 1, 2)  # (B, H, T, K)
            for part_BTD in jnp.split(qkv_BTE, 3, axis=-1)
        )
        if cached is None:
            start, kv = 0, None
        else:
            k_NSK, v_NSK, start = cached
            q, k, v = (x.reshape(B * H, T, K) for x in (q, k, v))
            k = jax.lax.dynamic_update_slice(k_NSK, k, (0, start, 0))
            v = jax.lax.dynamic_update_slice(v_NSK, v, (0, start, 0))
            kv = (k, v)
        if last_only:
            q, start, T = q[..., -1:, :], start + T - 1, 1

        scale = K**-0.5 if c.attention_scale is None else c.attention_scale
        scores = jnp.einsum("...TK,...SK->...TS", q * scale, k)
        position_T1 = start + jnp.arange(T)[:, None]
        causal_TS = jnp.arange(k.shape[-2]) <= position_T1
        scores = jnp.where(causal_TS, scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, axis=-1)
        weights = Dropout(c.dropout)(weights, deterministic=deterministic)
        y_BHTK = jnp.einsum("...TS,...SK->...TK", weights, v).reshape(B, H, T, K)
        y_BTD = jnp.moveaxis(y_BHTK, 1, 2).reshape(B, T, D)
        y_BTD = nn.Dense(D, kernel_init=WEIGHT_INIT, name="proj")(y_BTD)
        return Dropout(c.dropout)(y_BTD, deterministic=deterministic), kv


class MLP(nn.Module):
    """Two layers with a ReLU between them, four times as wide inside."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, *, deterministic: bool):
        D = x_BTD.shape[-1]
        h_BTF = nn.relu(nn.Dense(4 * D, kernel_init=WEIGHT_INIT, name="up")(x_BTD))
        y_BTD = nn.Dense(D, kernel_init=WEIGHT_INIT, name="down")(h_BTF)
        return Dropout(self.config.dropout)(y_BTD, deterministic=deterministic)


class Block(nn.Module):
    """One pre-norm transformer layer: x + attention(norm(x)), then x + MLP(norm(x))."""

    config: ModelConfig
    deterministic: bool
    last_only: bool = False

    @nn.compact
    def __call__(self, x_BTD, kv, length):
        cached = None if kv is None else (*kv, length)
        y_BTD, kv = Attention(self.config, name="attn")(
            layer_norm("norm_1")(x_BTD),
            cached,
            deterministic=self.deterministic,
            last_only=self.last_only,
        )
        x_BTD = (x_BTD[:, -1:] if self.last_only else x_BTD) + y_BTD
        x_BTD += MLP(self.config, name="mlp")(
            layer_norm("norm_2")(x_BTD), deterministic=self.deterministic
        )
        return x_BTD, kv


def layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, name=name)


class GPT(nn.Module):
    """The whole model.

    `model.apply({"params": params}, tokens_BT)` is deterministic and returns the logits. Training
    passes `deterministic=False, rngs={"dropout": key}`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        cache: Cache | None = None,
        deterministic: bool = True,
        last_only: bool = False,
    ):
        """Predicts the next token at every position.

        Args:
          tokens_BT: integers in [0, vocab_size); T is at most block_size.
          cache: what came before tokens_BT; None for nothing. It is the caller's to see that
            cache.length + T stays within block_size.
          deterministic: no dropout.
          last_only: return the logits of the last position alone, (B, 1, V), without computing
            the last block for the others. For decoding without a cache.

        Returns:
          float32 logits (B, T, V); with a cache, (logits, the cache with tokens_BT added).
        """
        c = self.config
        if not c.vocab_size:
            raise ValueError("model.vocab_size is 0; set it to the tokenizer's")
        T = tokens_BT.shape[1]
        if c.block_size < T:
            raise ValueError(f"{T} tokens do not fit block_size={c.block_size}")
        start = 0 if cache is None else cache.length
        embed = nn.Embed(c.vocab_size, c.n_embd, embedding_init=WEIGHT_INIT, name="tokens")
        position_SD = self.param("positions", WEIGHT_INIT, (c.block_size, c.n_embd))
        x_BTD = embed(tokens_BT) + jax.lax.dynamic_slice_in_dim(position_SD, start, T)
        kv = []
        if (last_only or cache is not None) and not self.is_initializing():
            layers = unstack_blocks(self.variables["params"])["blocks"]
            for i, layer in enumerate(layers):
                last = last_only and i == c.n_layer - 1
                cached = None if cache is None else (cache.k_NSK[i], cache.v_NSK[i])
                block = Block(c, deterministic, last_only=last, parent=None)
                x_BTD, new = block.apply({"params": layer}, x_BTD, cached, start)
                kv.append(new)
        else:
            blocks = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=c.n_layer,
                unroll=1 if self.is_initializing() else c.n_layer,  # rolled up compiles sooner
            )(c, deterministic, name="blocks")
            x_BTD, _ = blocks(x_BTD, None, start)
        x_BTD = layer_norm("norm_f")(x_BTD)
        logits_BTV = nn.Dense(c.vocab_size, kernel_init=WEIGHT_INIT, name="head")(x_BTD)
        if cache is None:
            return logits_BTV
        k_NSK, v_NSK = zip(*kv, strict=True)
        return logits_BTV, Cache(k_NSK=k_NSK, v_NSK=v_NSK, length=cache.length + T)


def forward(config: ModelConfig, params: Params, tokens_BT, **kwargs) -> Any:
    """Returns what a GPT of this config makes of tokens; see `GPT.__call__`."""
    return GPT(config).apply({"params": params}, tokens_BT, **kwargs)
