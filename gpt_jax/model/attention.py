"""Attention as a function of queries, keys and values, in three implementations.

Plain holds all scores in memory; blockwise computes a block of queries at a time; fused is flash
attention (Dao et al. 2022, https://arxiv.org/abs/2205.14135) by cuDNN's or the TPU's kernel.
`choose_attention` chooses among them. The projections and the cache are in `gpt.py`, whose letters
name the shapes here. H' is H / G, key/value heads; leading axes may be (B, H) or one axis of both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gpt_jax.config import ModelConfig
from gpt_jax.config.known_settings import unknown_settings
from gpt_jax.model.dtype import dtype_of
from gpt_jax.parallel.backend import target_backend
from gpt_jax.parallel.sharding import activation_spec, is_split

BLOCKWISE_MIN_LENGTH = 2048  # block_size from which all scores at once take too much memory
QUERY_BLOCK = 512  # query positions per block of `blockwise`
SPLASH_BLOCKS = (512, 256, 128)  # positions per block of the TPU's kernel, the first that divides T


def choose_attention(config: ModelConfig, backend: str) -> tuple[str, str]:
    """Returns the implementation of attention without a cache, and why it is not fused.

    Args:
      config: the model's; `config.attention` is followed where possible. Where `fused` is not
        available the result is that of `auto`; of a model with a setting that kernels may not know
        (`unknown_settings`) it is plain.
      backend: as `target_backend` returns it.

    Returns:
      ("plain", "blockwise" or "fused"; the reason, or "" where it is fused).
    """
    if config.attention == "plain":
        return "plain", "asked for"
    if unknown := unknown_settings(config):
        return "plain", f"only plain attention is known to compute {', '.join(unknown)}"
    if config.attention not in ("auto", "fused"):
        return config.attention, "asked for"
    obstacle = _fused_obstacle(config, backend)
    if not obstacle:
        return "fused", ""
    if config.block_size >= BLOCKWISE_MIN_LENGTH and not config.attention_dropout_rate:
        return "blockwise", obstacle
    return "plain", obstacle


def _fused_obstacle(config: ModelConfig, backend: str) -> str:
    """Returns why a kernel, cuDNN's or the TPU's, can't be used; "" if it can."""
    name, _, capability = backend.partition(" ")
    if name == "tpu":
        if config.attention_dropout_rate:
            return f"attention dropout {config.attention_dropout_rate:g}; fused has none"
        if config.block_size % SPLASH_BLOCKS[-1]:
            return f"fused needs a block_size of 128, 256, ..., and this is {config.block_size}"
        return ""
    if name != "cuda":
        return f"fused is for NVIDIA GPUs and TPUs, and this is {name}"
    if float(capability) < 8:
        return f"fused needs compute capability 8.0, and this GPU has {capability}"
    if config.attention_dropout_rate:
        return f"attention dropout {config.attention_dropout_rate:g}; fused has none"
    if (dtype := dtype_of(config, backend)) != "bfloat16":
        return f"fused needs bfloat16, and this is {dtype}"
    if config.head_size % 8 or config.head_size > 128:
        return f"fused needs a head size of 8, 16, ... 128, and this is {config.head_size}"
    return ""


def attend(
    name: str,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    start: int | jax.Array,
    dropout: Callable[[jax.Array], jax.Array],
    scale: float = 1.0,
) -> jax.Array:
    """Returns causal attention: softmax(scale q k^T) v over the positions up to each query's.

    Args:
      name: "plain", "blockwise" or "fused"; the last two are for start = 0 and without dropout.
        Fused attention on several TPUs needs the mesh to be set; see `needs_mesh`.
      q: queries (.., H, T, K).
      k: keys (.., H', S, K). G = H / H' consecutive query heads share one key/value head.
      v: values, likewise.
      start: position of the first query; keys have the positions from 0.
      dropout: of the attention weights.
      scale: of the scores.

    Returns:
      (.., H, T, K) of v's dtype. Scores and softmax are float32.
    """
    if name == "fused" and target_backend() != "tpu":
        return _cudnn(q, k, v, scale)
    q = q * scale
    if name == "fused":
        return _splash(q, k, v)
    if name == "blockwise":
        return _blockwise(q, k, v)
    if name != "plain":
        raise ValueError(f"model.attention={name!r} has no implementation here")
    return _plain(q, k, v, start, dropout)


def _plain(q, k, v, start, dropout=lambda weights: weights):
    T, K = q.shape[-2:]
    G = q.shape[-3] // k.shape[-3]
    # Query heads that share a key/value head are concatenated along time, (.., H', G T, K).
    rows = q.reshape(*k.shape[:-2], G * T, K)
    scores = jnp.einsum("...TK,...SK->...TS", rows, k, preferred_element_type=jnp.float32)
    position_T1 = start + jnp.tile(jnp.arange(T), G)[:, None]
    causal_TS = jnp.arange(k.shape[-2]) <= position_T1
    scores = jnp.where(causal_TS, scores, jnp.finfo(scores.dtype).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(v.dtype))
    return jnp.einsum("...TS,...SK->...TK", weights, v).reshape(q.shape)


def _blockwise(q, k, v):
    """Plain attention of a block of queries at a time: memory grows with T, not with T^2.

    The backward pass recomputes the weights of each block. Gradients of keys and values are summed
    over the blocks in float32, so these are passed as float32.
    """
    T, dtype = q.shape[-2], q.dtype
    size = min(QUERY_BLOCK, T)
    n = -(-T // size)
    q = jnp.pad(q, [(0, 0)] * (q.ndim - 2) + [(0, n * size - T), (0, 0)])
    blocks = jnp.moveaxis(q.reshape(*q.shape[:-2], n, size, q.shape[-1]), -3, 0)
    k, v = k.astype(jnp.float32), v.astype(jnp.float32)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # in a loop there is nothing to merge
    def attend_block(block_and_start):
        block, start = block_and_start
        return _plain(block, k.astype(dtype), v.astype(dtype), start)

    y = jnp.moveaxis(jax.lax.map(attend_block, (blocks, size * jnp.arange(n))), 0, -3)
    return y.reshape(q.shape)[..., :T, :]


def needs_mesh(config: ModelConfig) -> bool:
    """Returns whether attention uses a kernel that XLA can't split over devices by itself."""
    backend = target_backend()
    return backend == "tpu" and choose_attention(config, backend)[0] == "fused"


def _splash(q, k, v):
    """The TPU's flash attention, "splash", of jax's Pallas; q, k and v are (B, H or H', T, K).

    Each device of the current mesh computes its part of the sequences and heads.
    """
    T = q.shape[-2]
    size = next((n for n in SPLASH_BLOCKS if T % n == 0), None)
    if size is None:  # fewer tokens than block_size
        return _plain(q, k, v, 0)
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    G = q.shape[1] // k.shape[1]
    k, v = (jnp.repeat(x, G, axis=1) for x in (k, v))
    sizes = splash.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
    )

    def local_attention(q, k, v):
        mask = splash.MultiHeadMask([splash.CausalMask((T, T))] * q.shape[1])
        kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
        return jax.vmap(kernel)(q, k, v)

    if not is_split():
        return local_attention(q, k, v)
    spec = activation_spec("batch", "heads")
    mapped = jax.shard_map(local_attention, in_specs=spec, out_specs=spec, check_vma=False)
    return mapped(q, k, v)


def _cudnn(q, k, v, scale):
    """cuDNN's flash attention (Dao et al. 2022, https://arxiv.org/abs/2205.14135).

    Its gradient does not take an odd number of positions (seen with cuDNN 9.19 and jax 0.11.2).
    """
    if q.shape[-2] % 2:
        return _blockwise(q * scale, k, v)
    q, k, v = (jnp.moveaxis(x, -3, -2) for x in (q, k, v))  # it takes (B, T, H, K)
    y = jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True, implementation="cudnn")
    return jnp.moveaxis(y, -2, -3)
