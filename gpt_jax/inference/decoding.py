"""Decoding: a prompt fills the key/value cache (prefill), then `lax.scan` samples token by token.

The cache is used while the context fits `block_size`. Past that the model sees the last
`block_size` tokens at positions from 0. Every token then shifts all positions, so nothing cached
stays valid: `window="exact"` computes a full forward pass per token. `window="refill"` is a faster
approximation: whenever the cache is full it is refilled with the later half of the context.

Token ids only; `generation.py` turns them into text.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.config import ModelConfig
from gpt_jax.devices import compiler_options
from gpt_jax.model import Cache, Params, decoding_params, forward, init_cache
from gpt_jax.model.dtype import dtype_of
from gpt_jax.model.gpt import logits_from_hidden, output_head, pad_head
from gpt_jax.parallel.backend import target_backend
from gpt_jax.parallel.sharding import to_host

Mode = Literal["cached", "recompute", "refill"]
STREAM_TOKENS = 32  # tokens sampled per compiled call, and so shown at once
# sample.window -> how `decode` samples once the context is full.
FULL_CONTEXT_MODES: dict[str, Mode] = {"exact": "recompute", "refill": "refill"}
PREFILL_CHUNKS = 8  # a full context is prefilled in at most this many chunks
PREFILL_TOKENS = 16  # the smallest chunk, so that a short prompt costs little
SMALLEST_CACHE = 256  # positions that are read for each token at least; see `filled_positions`


class DecodeState(flax.struct.PyTreeNode):
    """What decoding carries from token to token.

    Attributes:
      cache: keys and values of the context, while that is shorter than block_size.
      window_BS: int32 (B, block_size), the context; its tokens come first, the rest is padding.
      length: int32 scalar, tokens in the context, at most block_size.
      logits_BV: float32, of the next token.
      keys_B: a PRNG key per stream.
      index: int32 scalar, tokens sampled so far.
    """

    cache: Cache
    window_BS: jax.Array
    length: jax.Array
    logits_BV: jax.Array
    keys_B: jax.Array
    index: jax.Array


class Filters(flax.struct.PyTreeNode):
    """How tokens are sampled. Values may change without recompiling; None turns a filter off.

    Attributes:
      temperature: float; 0 is greedy decoding, the likeliest token.
      top_k: None, or how many of the likeliest tokens to keep.
      top_p: None, or the least total probability of the likeliest tokens to keep.
    """

    temperature: float | jax.Array
    top_k: int | jax.Array | None = None
    top_p: float | jax.Array | None = None


def filter_logits(logits_BV: jax.Array, filters: Filters) -> jax.Array:
    """Returns logits divided by the temperature, with -inf for tokens that are filtered out.

    First the temperature, then top_k, then top_p on the tokens that top_k kept (nucleus sampling,
    Holtzman et al. 2019, https://arxiv.org/abs/1904.09751): the fewest likeliest tokens whose
    probabilities sum to at least top_p. Of equal logits the smaller id comes first. A temperature
    of 0 counts as 1 here; `sample_token` is greedy then.
    """
    temperature = jnp.where(filters.temperature == 0, 1.0, filters.temperature)
    logits_BV = logits_BV / temperature
    if filters.top_k is None and filters.top_p is None:
        return logits_BV
    order_BV = jnp.argsort(logits_BV, axis=-1, descending=True, stable=True)
    rank_BV = jnp.argsort(order_BV, axis=-1)
    if filters.top_k is not None:
        logits_BV = jnp.where(rank_BV < filters.top_k, logits_BV, -jnp.inf)
    if filters.top_p is not None:
        sorted_BV = jnp.take_along_axis(jax.nn.softmax(logits_BV), order_BV, axis=-1)
        before_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV
        keep_BV = (before_BV < filters.top_p).at[:, 0].set(True)
        logits_BV = jnp.where(jnp.take_along_axis(keep_BV, rank_BV, -1), logits_BV, -jnp.inf)
    return logits_BV


def sample_token(keys_B: jax.Array, logits_BV: jax.Array, filters: Filters) -> jax.Array:
    """Returns a token per row, int32 (B,), each sampled with its own key."""
    sampled_B = jax.vmap(functools.partial(jax.random.categorical, mode="low"))(
        keys_B, filter_logits(logits_BV, filters)
    )
    greedy_B = jnp.argmax(logits_BV, axis=-1)
    return jnp.where(filters.temperature == 0, greedy_B, sampled_B).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("config", "batch_size"))
def prefill(
    config: ModelConfig,
    params: Params,
    window_S: jax.Array,
    length: jax.Array,
    key: jax.Array,
    *,
    batch_size: int,
) -> DecodeState:
    """Returns the state after a prompt, from which `batch_size` streams continue it.

    The prompt is computed in chunks of equal size, as many as its length needs: one compiled
    program serves every length, and a short prompt does not cost as much as a long one.

    Args:
      config: the model's.
      params: the model's.
      window_S: int32 (block_size,), the prompt's last tokens, then padding of any id.
      length: how many of them are the prompt's, at least 1.
      key: stream i samples with fold_in(key, i), whatever batch_size is.
      batch_size: B.
    """
    S = config.block_size
    T = min(S, max(PREFILL_TOKENS, S // PREFILL_CHUNKS))
    params = decoding_params(config, params)

    def prefill_chunk(carry):
        cache, _ = carry
        start = jnp.minimum(cache.length, S - T)  # the last chunk may overlap the one before
        chunk_1T = jax.lax.dynamic_slice_in_dim(window_S, start, T)[None]
        logits_1TV, cache = forward(config, params, chunk_1T, cache=cache.replace(length=start))
        last = jnp.clip(length - 1 - start, 0, T - 1)
        return cache, jax.lax.dynamic_index_in_dim(logits_1TV, last, axis=1, keepdims=False)

    # Keys and values of the padding are at positions >= length: masked, and overwritten later.
    empty = init_cache(config, 1), jnp.zeros((1, config.vocab_size))
    cache, logits_1V = jax.lax.while_loop(
        lambda carry: carry[0].length < length, prefill_chunk, empty
    )
    return DecodeState(
        cache=Cache(
            k_NSK=tuple(jnp.tile(k_HSK, (batch_size, 1, 1)) for k_HSK in cache.k_NSK),
            v_NSK=tuple(jnp.tile(v_HSK, (batch_size, 1, 1)) for v_HSK in cache.v_NSK),
            length=length,
        ),
        window_BS=jnp.repeat(window_S[None], batch_size, axis=0),
        length=length,
        logits_BV=jnp.repeat(logits_1V, batch_size, axis=0),
        keys_B=jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size)),
        index=jnp.zeros((), jnp.int32),
    )


def decode_state_shapes(config: ModelConfig, params: Params, batch_size: int) -> DecodeState:
    """Returns the shapes and dtypes of the state that `prefill` returns.

    Args:
      config: the model's.
      params: the model's, or their shapes.
      batch_size: B.
    """
    window_S = jax.ShapeDtypeStruct((config.block_size,), jnp.int32)
    length, key = jax.ShapeDtypeStruct((), jnp.int32), jax.eval_shape(lambda: jax.random.key(0))
    start = functools.partial(prefill, config, batch_size=batch_size)
    return jax.eval_shape(start, params, window_S, length, key)


def decode(
    config: ModelConfig,
    params: Params,
    state: DecodeState,
    filters: Filters,
    *,
    steps: int,
    mode: Mode,
    filled: int | None = None,
) -> tuple[DecodeState, jax.Array]:
    """Samples tokens for every stream, all in one mode. Compiled.

    Args:
      config: the model's.
      params: the model's.
      state: from `prefill` or `decode`; its buffers are donated.
      filters: how tokens are sampled.
      steps: how many tokens.
      mode: "cached" while the context is shorter than block_size: each token adds a position to the
        key/value cache. Tokens past block_size are then invalid, and the state stays that of the
        full context. Once it is full, "recompute" (a full forward pass per token) or "refill".
      filled: in mode "cached", how many positions of the cache are read and written; at least the
        context with the new tokens, or block_size, the default.

    Returns:
      (the state after the tokens, int32 (B, steps)).
    """
    run = jit_decode(jax.default_backend())
    return run(config, params, state, filters, steps=steps, mode=mode, filled=filled)


@functools.cache
def jit_decode(platform: str):
    """Returns the compiled function of `decode` for a platform such as "cpu" or "tpu"."""
    return jax.jit(
        _decode,
        static_argnames=("config", "steps", "mode", "filled"),
        donate_argnames="state",
        compiler_options=compiler_options(platform, library_products=False),
    )


def _decode(config, params, state, filters, *, steps, mode, filled=None):
    params = decoding_params(config, params)
    S = config.block_size
    whole = state.cache
    if filled is not None:
        state = state.replace(cache=_resize(whole, whole, filled))

    kernel_DV, bias_V = pad_head(output_head(config, params))
    head = kernel_DV.astype(dtype_of(config, target_backend())), bias_V

    def cached(state: DecodeState, token_B) -> DecodeState:
        (x_B1D, _), cache = forward(
            config, params, token_B[:, None], cache=state.cache, return_hidden=True
        )
        with jax.named_scope("head"):  # a name in profiles and plans
            logits_B1V = logits_from_hidden(x_B1D, head)[..., : config.vocab_size]
        at = (0, state.length)
        window_BS = jax.lax.dynamic_update_slice(state.window_BS, token_B[:, None], at)
        return state.replace(
            cache=cache, window_BS=window_BS, length=state.length + 1, logits_BV=logits_B1V[:, 0]
        )

    def recompute(state: DecodeState, token_B) -> DecodeState:
        """All positions shift by one, so all of them are recomputed."""
        window_BS = jnp.concatenate([state.window_BS[:, 1:], token_B[:, None]], axis=1)
        logits_B1V = forward(config, params, window_BS, last_only=True)
        return state.replace(window_BS=window_BS, logits_BV=logits_B1V[:, 0])

    def refill(state: DecodeState, token_B) -> DecodeState:
        """The later half of the context becomes the whole context."""
        kept = max(1, S // 2)
        window_BS = jnp.concatenate([state.window_BS[:, 1:], token_B[:, None]], axis=1)
        window_BS = jnp.roll(window_BS, kept, axis=1)
        empty = state.cache.replace(length=jnp.zeros((), jnp.int32))
        logits_BTV, cache = forward(config, params, window_BS[:, :kept], cache=empty)
        length = jnp.full((), kept, jnp.int32)
        return state.replace(
            cache=cache, window_BS=window_BS, length=length, logits_BV=logits_BTV[:, -1]
        )

    advance = {"cached": cached, "recompute": recompute, "refill": refill}[mode]

    def body(state: DecodeState, keys_B):
        with jax.named_scope("sampling"):
            token_B = sample_token(keys_B, state.logits_BV, filters)
        new = advance(state, token_B).replace(index=state.index + 1)
        if mode == "cached":  # a full context stays; its cache is not used again
            fits = state.length < S
            old = state.replace(cache=new.cache)
            new = jax.tree.map(lambda a, b: a if a is b else jnp.where(fits, a, b), new, old)
        return new, token_B

    # The keys of all steps: each is a function of the stream's key and the token's index.
    keys_TB = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))(
        state.keys_B, state.index + jnp.arange(steps, dtype=jnp.int32)
    )
    state, tokens_TB = jax.lax.scan(body, state, keys_TB)
    if filled is not None:
        state = state.replace(cache=_resize(state.cache, whole, S))
    return state, tokens_TB.T


def _resize(cache: Cache, whole: Cache, size: int) -> Cache:
    """Returns a cache of `size` positions: the cache's, and after them those of `whole`."""

    def resize(x_NSK: jax.Array, whole_NSK: jax.Array) -> jax.Array:
        if x_NSK.shape[1] >= size:
            return x_NSK[:, :size]
        return jax.lax.dynamic_update_slice(whole_NSK, x_NSK, (0, 0, 0))

    return Cache(
        k_NSK=tuple(map(resize, cache.k_NSK, whole.k_NSK)),
        v_NSK=tuple(map(resize, cache.v_NSK, whole.v_NSK)),
        length=cache.length,
    )


def filled_positions(length: int, block_size: int) -> int:
    """Returns how many positions of the cache tokens up to `length` read: 256, 512, 1,024, ...

    At most block_size. Each is a program, compiled once it is reached.
    """
    size = SMALLEST_CACHE
    while size < length:
        size *= 2
    return min(size, block_size)


def generate_tokens(
    config: ModelConfig,
    params: Params,
    prompt: np.ndarray,
    key: jax.Array,
    filters: Filters,
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    window: str = "exact",
) -> Iterator[np.ndarray]:
    """Continues a prompt, a few tokens at a time.

    Args:
      config: the model's.
      params: the model's; where they are split over hosts, all of them call this alike.
      prompt: int (P,), P >= 1; the model sees its last block_size tokens.
      key: stream i samples with fold_in(key, i), whatever num_samples is.
      filters: how tokens are sampled.
      max_new_tokens: tokens per stream.
      num_samples: B, streams.
      window: "exact" or "refill", see the top of this module.

    Yields:
      int32 (B, n), the next n tokens; max_new_tokens in all.
    """
    context = np.asarray(prompt, np.int32)[-config.block_size :]
    padded_S = np.zeros(config.block_size, np.int32)
    padded_S[: len(context)] = context
    state = prefill(config, params, padded_S, np.int32(len(context)), key, batch_size=num_samples)
    length, done = len(context), 0
    while done < max_new_tokens:
        mode = "cached" if length < config.block_size else FULL_CONTEXT_MODES[window]
        n = steps = 1 if mode == "refill" else STREAM_TOKENS
        filled = None
        if mode == "cached":
            n = min(steps, config.block_size - length)
            filled = filled_positions(length + steps, config.block_size)
            length += n
        elif mode == "refill":
            length = max(1, config.block_size // 2)
        state, tokens_BT = decode(
            config, params, state, filters, steps=steps, mode=mode, filled=filled
        )
        yield to_host(tokens_BT)[:, : min(n, max_new_tokens - done)]
        done += n
