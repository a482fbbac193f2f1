"""The GPT: a decoder-only transformer as a flax.linen module.

It maps tokens to logits and does nothing else: no loss, no sampling, no sharding rules, no files.
Attention is in `attention.py`, the other layers are in `layers.py`. Read `loss.py` and
`training/step.py` next for how it is trained, `inference/decoding.py` for how it generates.

Letters in names give the shape of an array (`x_BTD` is batch, time, embedding):

    B batch: sequences            T time: tokens of the input     S time: positions of the cache
    D embedding width, n_embd     H attention heads               K head size, D / H
    F width of the MLP            L layers                        V vocabulary size
    G query heads per key/value head, H / n_kv_head (1 without grouped-query attention)
    N sequences times key/value heads, B H / G

Parameters of the blocks are stacked along a leading axis L, whatever the depth, so that one table
of sharding rules and one checkpoint layout serve every size.

Mixed precision: with model.dtype=bfloat16 activations and matrix products are bfloat16. Parameters,
their gradients as the optimizer gets them, and every sum over tokens, positions or entries (norms,
softmax, the gradients of embeddings and biases) stay float32, and so do the logits.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from gpt_jax.config import ModelConfig
from gpt_jax.model.attention import attend, choose_attention
from gpt_jax.model.dtype import dtype_of
from gpt_jax.model.layers import (
    MLP,
    WEIGHT_INIT,
    Dense,
    Dropout,
    add_positions,
    apply_rope,
    look_up,
    make_norm,
    matmul,
    residual_init,
    rms_norm,
)
from gpt_jax.model.tuning import choose_tuning
from gpt_jax.parallel.backend import must_be_deterministic, target_backend
from gpt_jax.parallel.sharding import constrain

Params = Any  # the tree under "params": nested dicts of float32 arrays

# Activation checkpointing (rematerialisation; Chen et al. 2016, https://arxiv.org/abs/1604.06174):
# what a block saves for its gradient; the backward pass recomputes the rest.
REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,  # its input alone
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # products with parameters
}


class Cache(flax.struct.PyTreeNode):
    """The key/value cache: keys and values of the tokens so far, carried through decoding.

    Attributes:
      k_NSK: keys, of the model's dtype; S is block_size. Entries at positions >= length are not
        valid yet. One array per layer, with sequences and heads in one axis, so that XLA updates
        each in place; stacked layers, or a batch axis of 1, would copy all of it for every token.
      v_NSK: values, likewise.
      length: int32 scalar, how many positions are valid; the position of the next token.
    """

    k_NSK: tuple[jax.Array, ...]
    v_NSK: tuple[jax.Array, ...]
    length: jax.Array


def init_cache(config: ModelConfig, batch_size: int) -> Cache:
    """Returns an empty cache for `batch_size` sequences of at most `config.block_size` tokens."""
    c = config
    shape, dtype = (
        (batch_size * c.kv_heads, c.block_size, c.head_size),
        dtype_of(c, target_backend()),
    )
    empty = (jnp.zeros(shape, dtype),) * c.n_layer
    return Cache(k_NSK=empty, v_NSK=empty, length=jnp.zeros((), jnp.int32))


def unstack_blocks(params: Params) -> Params:
    """Returns params with a tuple of trees, one per block, in place of stacked arrays.

    Decoding does this once, before its loop: taking a block out of the stack costs a copy.
    """
    stacked = params["blocks"]
    if isinstance(stacked, tuple):
        return params
    n_layer = len(jax.tree.leaves(stacked)[0])
    layers = (jax.tree.map(operator.itemgetter(i), stacked) for i in range(n_layer))
    return {**params, "blocks": tuple(layers)}


def decoding_params(config: ModelConfig, params: Params) -> Params:
    """Returns params as decoding reads them, which it does for every token.

    Blocks are unstacked, and the kernels of matrix products have the model's dtype, which training
    converts them to as well. Done once, before decoding; done again it changes nothing.
    """

    dtype = dtype_of(config, target_backend())

    def convert(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        return x.astype(dtype) if path[-1].key == "kernel" else x

    return jax.tree.map_with_path(convert, unstack_blocks(params))


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017, section 3.2).

    With n_kv_head it is grouped-query attention (GQA; Ainslie et al. 2023,
    https://arxiv.org/abs/2305.13245): G = n_head / n_kv_head consecutive query heads share one
    key/value head. With positions="rotary" queries and keys get rotary position embeddings (RoPE).
    With qk_norm, queries and keys are normalised (Henry et al. 2020,
    https://arxiv.org/abs/2010.04245; here by RMSNorm with a learned scale per entry of a head).
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BTD,
        cached,
        *,
        deterministic: bool,
        last_only: bool = False,
        first_row=None,
        layer=0,
    ):
        """Attends from x to itself, or to the cache and itself.

        Args:
          x_BTD: of the model's dtype.
          cached: None, or (k_NSK, v_NSK, length); the T tokens then have the positions
            length .. length + T - 1.
          deterministic: no dropout.
          last_only: compute the output of the last position only (T is then 1 in the result).
          first_row: see `GPT.__call__`.
          layer: int32 scalar, number of blocks before this one; for inverse_layer_scale.

        Returns:
          ((B, T, D) of the model's dtype, None or the new (k_NSK, v_NSK)).
        """
        c = self.config
        B, T, D = x_BTD.shape
        H, K = c.n_head, c.head_size
        features, cuts = (H + 2 * c.kv_heads) * K, (H * K, (H + c.kv_heads) * K)
        if choose_tuning(target_backend(), D).split_qkv:
            split = Dense(features, use_bias=c.qkv_bias, cuts=cuts, name="qkv")(x_BTD)
        else:
            qkv_BTE = Dense(features, use_bias=c.qkv_bias, name="qkv")(x_BTD)
            split = jnp.split(qkv_BTE, cuts, axis=-1)
        split = [constrain(x_BTE, "batch", "time", "width") for x_BTE in split]
        q, k, v = (
            # (B, H or H / G, T, K)
            constrain(jnp.moveaxis(x_BTE.reshape(B, T, -1, K), 1, 2), "batch", "heads")
            for x_BTE in split
        )
        start = 0 if cached is None else cached[2]
        if c.qk_norm:
            q, k = (rms_norm(c, n, x_BTD.dtype)(x) for n, x in (("q_norm", q), ("k_norm", k)))
        if c.positions == "rotary":
            position_T = start + jnp.arange(T)
            q, k = (apply_rope(x, position_T, c.rotary_base) for x in (q, k))
        if c.inverse_layer_scale:
            q = (q / (layer + 1.0)).astype(q.dtype)
        if cached is None:
            kv = None
        else:
            k_NSK, v_NSK, _ = cached
            q, k, v = (x.reshape(-1, T, K) for x in (q, k, v))
            k = jax.lax.dynamic_update_slice(k_NSK, k, (0, start, 0))
            v = jax.lax.dynamic_update_slice(v_NSK, v, (0, start, 0))
            kv = (k, v)
        if last_only:
            q, start, T = q[..., -1:, :], start + T - 1, 1

        whole = cached is None and not last_only and not self.is_initializing()
        name = choose_attention(c, target_backend())[0] if whole else "plain"
        scale = K**-0.5 if c.attention_scale is None else c.attention_scale
        rate = c.attention_dropout_rate
        drop = functools.partial(Dropout(rate, deterministic), first_row=first_row)
        y_BHTK = attend(name, q, k, v, start, drop, scale).reshape(B, H, T, K)
        y_BTHK = jnp.moveaxis(constrain(y_BHTK, "batch", "heads"), 1, 2)
        y_BTD = constrain(y_BTHK.reshape(B, T, D), "batch", "time", "width")
        y_BTD = Dense(D, use_bias=c.bias, kernel_init=residual_init(c), name="proj")(y_BTD)
        return Dropout(c.dropout, deterministic)(y_BTD, first_row), kv


class Block(nn.Module):
    """One pre-norm transformer layer: x + attention(norm(x)), then x + MLP(norm(x))."""

    config: ModelConfig
    deterministic: bool
    last_only: bool = False

    @nn.compact
    def __call__(self, x_BTD, kv, length, first_row=None, layer=0):
        c, deterministic = self.config, self.deterministic
        cached = None if kv is None else (*kv, length)
        h_BTD = make_norm(c, "norm_1", x_BTD.dtype)(x_BTD)
        y_BTD, kv = Attention(c, name="attn")(
            h_BTD,
            cached,
            deterministic=deterministic,
            last_only=self.last_only,
            first_row=first_row,
            layer=layer,
        )
        x_BTD = (x_BTD[:, -1:] if self.last_only else x_BTD) + y_BTD
        x_BTD = constrain(x_BTD, "batch", "time")
        h_BTD = make_norm(c, "norm_2", x_BTD.dtype)(x_BTD)
        x_BTD += MLP(c, name="mlp")(h_BTD, deterministic=deterministic, first_row=first_row)
        return constrain(x_BTD, "batch", "time"), kv


class OutputHead(nn.Module):
    """The parameters of an untied output head: `logits_from_hidden` applies them."""

    features: int
    use_bias: bool

    @nn.compact
    def __call__(self, n_embd: int):
        kernel_DV = self.param("kernel", WEIGHT_INIT, (n_embd, self.features))
        if not self.use_bias:
            return kernel_DV, None
        return kernel_DV, self.param("bias", nn.initializers.zeros, (self.features,))


Head = tuple[jax.Array, jax.Array | None]  # of the output: kernel_DV and bias_V


def output_head(config: ModelConfig, params: Params) -> Head:
    """Returns the parameters of the output head, as a GPT with return_hidden=True returns them."""
    if config.tied:
        return params["tokens"]["embedding"].T, params.get("head_bias")
    return params["head"]["kernel"], params["head"].get("bias")


def pad_head(head: Head) -> Head:
    """Returns an output head whose vocabulary has a size that the device multiplies fast.

    The ids added have the logit -1e9, so that their probability is 0 and so is their gradient. A
    product over 50257 ids is copied or takes slow kernels on a GPU; one over 50304 does not.
    """
    kernel_DV, bias_V = head
    D, V = kernel_DV.shape
    added = -V % choose_tuning(target_backend(), D).vocab_multiple
    if not added:
        return head
    bias_V = jnp.zeros(V) if bias_V is None else bias_V
    return (
        jnp.pad(kernel_DV, ((0, 0), (0, added))),
        jnp.pad(bias_V, (0, added), constant_values=-1e9),
    )


def logits_from_hidden(x_BTD: jax.Array, head: Head) -> jax.Array:
    """Returns the float32 logits (B, T, V) of final hidden states; head is (kernel_DV, bias_V)."""
    kernel_DV, bias_V = head
    logits_BTV = matmul(x_BTD, kernel_DV, jnp.float32)
    return logits_BTV if bias_V is None else logits_BTV + bias_V


class GPT(nn.Module):
    """The whole model: embeddings, blocks, final norm and output head.

    `model.apply({"params": params}, tokens_BT)` is deterministic and returns the logits. Training
    passes `deterministic=False, rngs={"dropout": key}`. With model.tied the output head is the
    token embedding, transposed: weight tying (Press and Wolf 2017,
    https://arxiv.org/abs/1608.05859).
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
        return_hidden: bool = False,
        first_row: jax.Array | None = None,
    ):
        """Predicts the next token at every position.

        Args:
          tokens_BT: integers in [0, vocab_size); T is at most block_size.
          cache: of the tokens before tokens_BT; None if there are none. The caller ensures that
            cache.length + T is at most block_size.
          deterministic: no dropout.
          last_only: return the logits of the last position only, (B, 1, V), without computing the
            last block for the others. For decoding without a cache.
          return_hidden: return what `logits_from_hidden` takes in place of the logits, to compute
            them in chunks.
          first_row: int32 scalar; the dropout masks are those of a larger batch from this row on.
            None is 0.

        Returns:
          float32 logits (B, T, V). With return_hidden, in their place (x_BTD, head): the normalised
          output of the last block, and the parameters of the output head. With a cache, (either of
          these, the cache with tokens_BT added).
        """
        c = self.config
        if not c.vocab_size:
            raise ValueError("model.vocab_size is 0; set it to the tokenizer's")
        T = tokens_BT.shape[1]
        if c.block_size < T:
            raise ValueError(f"{T} tokens do not fit block_size={c.block_size}")
        start = 0 if cache is None else cache.length
        embed = nn.Embed(c.vocab_size, c.n_embd, embedding_init=WEIGHT_INIT, name="tokens")
        dtype = dtype_of(c, target_backend())
        if must_be_deterministic() and not self.is_initializing():
            x_BTD = look_up(dtype, embed.embedding, tokens_BT)
        else:
            x_BTD = embed(tokens_BT)
        # From the embedding's width over tensor and fsdp to the batch over fsdp, a step at a time:
        # XLA finds no way that takes both, and would gather everything everywhere.
        x_BTD = constrain(x_BTD, "batch", "time", "width")
        if c.positions == "learned":
            position_SD = self.param("positions", WEIGHT_INIT, (c.block_size, c.n_embd))
            x_BTD = add_positions(x_BTD, jax.lax.dynamic_slice_in_dim(position_SD, start, T))
        x_BTD = x_BTD.astype(dtype)
        x_BTD = Dropout(c.embedding_dropout, deterministic)(x_BTD, first_row)
        x_BTD = constrain(x_BTD, "batch", "time")
        kv = []
        if (last_only or cache is not None) and not self.is_initializing():
            layers = unstack_blocks(self.variables["params"])["blocks"]
            for i, layer in enumerate(layers):
                last = last_only and i == c.n_layer - 1
                cached = None if cache is None else (cache.k_NSK[i], cache.v_NSK[i])
                block = Block(c, deterministic, last_only=last, parent=None)
                x_BTD, new = block.apply({"params": layer}, x_BTD, cached, start, layer=i)
                kv.append(new)
        else:
            deepest = choose_tuning(target_backend(), c.n_embd).unroll
            block, unroll = Block, c.n_layer if c.n_layer <= deepest else 1
            if c.remat != "none":
                # Only in a loop does XLA not merge a recomputation with the first computation.
                block, unroll = nn.remat(Block, policy=REMAT[c.remat], prevent_cse=False), 1
            layer_L = jnp.arange(c.n_layer) if c.inverse_layer_scale else None
            blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(*(nn.broadcast,) * 3, nn.broadcast if layer_L is None else 0),
                length=c.n_layer,
                unroll=1 if self.is_initializing() else unroll,  # rolled up compiles sooner
            )(c, deterministic, name="blocks")
            x_BTD, _ = blocks(x_BTD, None, start, first_row, layer_L)
        x_BTD = make_norm(c, "norm_f", x_BTD.dtype)(x_BTD)
        if c.tied:
            bias = ("head_bias", nn.initializers.zeros, (c.vocab_size,))
            head = embed.embedding.T, self.param(*bias) if c.head_bias else None
        else:
            head = OutputHead(c.vocab_size, use_bias=c.head_bias, name="head")(c.n_embd)
        output = (x_BTD, head) if return_hidden else logits_from_hidden(x_BTD, head)
        if cache is None:
            return output
        k_NSK, v_NSK = zip(*kv, strict=True)
        return output, Cache(k_NSK=k_NSK, v_NSK=v_NSK, length=cache.length + T)


def forward(config: ModelConfig, params: Params, tokens_BT, **kwargs) -> Any:
    """Returns the output of a GPT of this config; see `GPT.__call__`."""
    return GPT(config).apply({"params": params}, tokens_BT, **kwargs)
