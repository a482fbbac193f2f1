"""The exact evaluation: every token of a split but the first, predicted once."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import numerics
from gpt_jax.config import ModelConfig, TrainConfig
from gpt_jax.config.fields import plain
from gpt_jax.devices import WIDE_N_EMBD, compiler_options
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.inference.windows import count_windows, make_windows
from gpt_jax.input_pipeline.corpus import check_same_corpus, check_same_tokenizer, load_corpus
from gpt_jax.input_pipeline.dataset import Component, Dataset
from gpt_jax.input_pipeline.loss_mask import Tokens, count_targets, unmark
from gpt_jax.model import Params
from gpt_jax.model.attention import needs_mesh
from gpt_jax.model.loss import batch_losses
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.sharding import (
    batch_sharding,
    make_constrain_batch,
    mesh_context,
    params_axes,
    replicated,
    state_shardings,
    to_global_array,
)
from gpt_jax.run.load import Run
from gpt_jax.run.metrics import bits_per_byte

BATCH_TOKENS = 4096  # per micro-batch
LOGITS = 2**25  # in memory at once, at most, unless training has more: 128 MiB
CALL_BATCHES = 16  # micro-batches in one compiled call, at most


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An exact evaluation of one split.

    Attributes:
      nats_per_token: mean cross-entropy; of a mixture, the corpora's means by their weights.
      tokens: number of predicted tokens: all but the first of each shard, or the number asked for;
        with a loss mask, those of them that count.
      n_bytes: UTF-8 bytes of those tokens.
      stride: from one window's start to the next, in tokens.
      n_predictable: tokens of the whole split that can be predicted.
      components: of a mixture: (weight, evaluation) of each corpus; else empty.
    """

    nats_per_token: float
    tokens: int
    n_bytes: int
    stride: int
    n_predictable: int
    components: tuple[tuple[float, Evaluation], ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether all of the split was predicted."""
        return self.tokens == self.n_predictable

    @property
    def perplexity(self) -> float:
        """e to the nats; infinite where a float can't hold it."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 709 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of the text; None where the tokens stand for no bytes."""
        if self.components:
            per_token = sum(w * each.n_bytes / each.tokens for w, each in self.components)
            return bits_per_byte(self.nats_per_token, per_token)
        return bits_per_byte(self.nats_per_token * self.tokens, self.n_bytes)

    def record(self) -> dict[str, Any]:
        """Returns the figures for JSON."""
        record = {
            "nats_per_token": self.nats_per_token,
            "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
            "bits_per_byte": self.bits_per_byte,
            "tokens_predicted": self.tokens,
            "bytes_predicted": self.n_bytes,
            "stride": self.stride,
        }
        if not self.is_whole:
            record["of_tokens"] = self.n_predictable
        if self.components:
            record["parts"] = [{"share": w, **each.record()} for w, each in self.components]
        return record

    def __str__(self) -> str:
        tokens = f"{self.tokens:,}"
        if not self.is_whole:
            tokens = f"the first {tokens} of {self.n_predictable:,}"
        bits = "no bits per byte: these tokens stand for no text"
        if (figure := self.bits_per_byte) is not None:
            bits = f"{figure:.4f} bits per byte"
        return (
            f"{self.nats_per_token:.4f} nats per token, perplexity {self.perplexity:.3f}, "
            f"{bits} ({tokens} tokens, {self.n_bytes:,} bytes)"
        )


def choose_batch(
    block_size: int, train: TrainConfig | None = None, vocab_size: int = 1
) -> tuple[int, int | None]:
    """Returns the number of windows per micro-batch, and the loss_chunk.

    A micro-batch has `BATCH_TOKENS` in a multiple of 8 windows, so that its windows are the same
    for any number of devices up to 8. It is smaller if the settings of training are, as for a small
    memory: at most their micro_batch, and more than `BATCH_TOKENS` only if their batch has as many
    windows. Its loss is then computed in chunks; so it is if its logits were more than `LOGITS` and
    than those of training.
    """
    batch_size = 8 * max(1, BATCH_TOKENS // block_size // 8)
    loss_chunk = None
    if train is not None:
        most = max(train.batch_size, BATCH_TOKENS // block_size)
        if train.micro_batch is not None:
            most = train.micro_batch_size
        batch_size, loss_chunk = min(batch_size, most), train.loss_chunk
    if loss_chunk is None and batch_size * block_size > BATCH_TOKENS:
        loss_chunk = BATCH_TOKENS
    if loss_chunk is None and train is not None:
        most = max(train.micro_batch_size * block_size, LOGITS // vocab_size)
        loss_chunk = most if batch_size * block_size > most else None
    return batch_size, loss_chunk


@functools.lru_cache(maxsize=4)
def _window_losses(
    config: ModelConfig,
    mesh: jax.sharding.Mesh,
    loss_chunk: int | None = None,
    is_masked: bool = False,
):
    options = compiler_options(jax.default_backend(), library_products=config.n_embd < WIDE_N_EMBD)
    losses = make_window_losses(config, make_constrain_batch(mesh), loss_chunk, is_masked)
    return jax.jit(losses, out_shardings=replicated(mesh), compiler_options=options)


@numerics.fixed()
def evaluate_split(
    config: ModelConfig,
    params: Params,
    dataset: Dataset,
    token_bytes: np.ndarray,
    *,
    stride: int | None = None,
    train: TrainConfig | None = None,
    max_tokens: int | None = None,
) -> Evaluation:
    """Evaluates a model on a whole dataset; sums in float64.

    The host gathers a few windows at a time, so the memory does not grow with the dataset.

    Args:
      config: the model's.
      params: the model's, on any devices. Where their mesh splits them, so does the evaluation's.
        Of several hosts each has them all, or together they hold them on one mesh; all call this.
      dataset: what to predict.
      token_bytes: int32 (V,), UTF-8 bytes a token.
      stride: see `make_windows`; None is block_size.
      train: the settings of training, which bound the micro-batch; see `choose_batch`.
      max_tokens: predict at most this many tokens, the first ones, of each corpus; None is all.

    Raises:
      UserError: there is no token to predict.
      ConfigError: the stride is not in [1, block_size].
    """
    components = tuple(
        (
            float(component.weight),
            _evaluate_component(config, params, component, token_bytes, stride, max_tokens, train),
        )
        for component in dataset.components
    )
    if len(components) == 1:
        return components[0][1]
    return Evaluation(
        nats_per_token=sum(weight * each.nats_per_token for weight, each in components),
        tokens=sum(each.tokens for _, each in components),
        n_bytes=sum(each.n_bytes for _, each in components),
        stride=stride or config.block_size,
        n_predictable=sum(each.n_predictable for _, each in components),
        components=components,
    )


def _evaluate_component(
    config: ModelConfig,
    params: Params,
    component: Component,
    token_bytes: np.ndarray,
    stride: int | None,
    max_tokens: int | None,
    train: TrainConfig | None,
) -> Evaluation:
    batch_size, loss_chunk = choose_batch(config.block_size, train, config.vocab_size)
    axes = params_axes(params)
    # Windows for every host, and for every device that splits them.
    n = axes.fsdp
    if jax.process_count() > 1:
        n *= jax.device_count() // (axes.fsdp * axes.tensor)
    batch_size = -(-batch_size // n) * n
    mesh = make_mesh(batch_size, sizes=axes, kv_heads=config.kv_heads)
    params = jax.tree.map(to_global_array, params, state_shardings(params, mesh))
    shards = _first_tokens(component.shards, max_tokens)
    n_predicted = sum(map(count_targets, shards))
    if not shards:
        raise UserError("the split has no token to predict: none of its shards has two tokens")
    if not n_predicted:
        raise UserError("the split has no token to predict: its loss mask counts none of them")
    total, n_bytes, is_masked = 0.0, 0, component.is_masked
    index_T = np.arange(config.block_size)
    for batches, firsts, lasts in _calls(shards, config.block_size, stride, batch_size):
        rows = batches
        if mesh.is_multi_process:  # each host gives its own devices their windows
            rows = to_global_array(batches, batch_sharding(mesh, axis=1))
        with mesh_context(mesh, kernels=needs_mesh(config)):
            window_losses = _window_losses(config, mesh, loss_chunk, is_masked)
            losses = window_losses(params, rows, firsts, lasts)
        total += float(np.asarray(losses, np.float64).sum())
        counts = (index_T >= firsts[..., None]) & (index_T < lasts[..., None])
        if is_masked:
            counts &= batches[..., 1:] >= 0
        n_bytes += int(token_bytes[batches[..., 1:][counts]].sum())
    return Evaluation(
        nats_per_token=total / n_predicted,
        tokens=n_predicted,
        n_bytes=n_bytes,
        stride=stride or config.block_size,
        n_predictable=sum(map(count_targets, component.shards)),
    )


def _first_tokens(shards: Sequence[Tokens], max_tokens: int | None) -> list[Tokens]:
    """Returns the shards in which a token can be predicted, up to so many such tokens."""
    remaining = sum(map(len, shards)) if max_tokens is None else max_tokens
    first = []
    for shard in shards:
        if remaining > 0 and len(shard) > 1:
            first.append(shard[: remaining + 1])
            remaining -= len(first[-1]) - 1
    return first


def _calls(shards: Sequence[Tokens], block_size: int, stride: int | None, batch_size: int):
    """Yields the arguments of each call of `_window_losses`: batches (W, B, T + 1), firsts and
    lasts (W, B).

    The windows of all shards are consecutive; W is the same in every call.
    """
    n_windows = [count_windows(len(shard), block_size, stride or block_size) for shard in shards]
    shape = min(CALL_BATCHES, -(-sum(n_windows) // batch_size)), batch_size
    n_rows = shape[0] * shape[1]

    def empty() -> tuple[np.ndarray, ...]:
        # Rows without a window are computed, and never counted.
        rows = np.zeros((n_rows, block_size + 1), np.int32)
        return rows, np.zeros(n_rows, np.int32), np.zeros(n_rows, np.int32)

    used, (rows, firsts, lasts) = 0, empty()
    for shard, n in zip(shards, n_windows, strict=True):
        at = 0
        while at < n:
            windows = range(at, min(at + n_rows - used, n))
            here = slice(used, used + len(windows))
            starts, firsts[here], lasts[here] = make_windows(
                len(shard), block_size, stride, windows
            )
            for row, start in zip(rows[here], starts, strict=True):
                ids = np.asarray(shard[start : start + block_size + 1])
                row[: len(ids)] = ids
            at, used = windows.stop, here.stop
            if used == n_rows:
                yield rows.reshape(*shape, -1), firsts.reshape(shape), lasts.reshape(shape)
                used, (rows, firsts, lasts) = 0, empty()
    if used:
        yield rows.reshape(*shape, -1), firsts.reshape(shape), lasts.reshape(shape)


def load_datasets(run: Run, corpus_name: str | None = None) -> dict[str, Dataset]:
    """Returns the datasets "train" and "val" of the corpus that a run was trained on.

    Args:
      run: the run.
      corpus_name: the path of that corpus if it has moved. For a GPT-2 folder, any corpus.

    Raises:
      UserError: it is not available, or has changed.
    """
    if not run.corpus and not corpus_name:
        raise UserError(
            f"{run.run_dir} is a GPT-2 folder, which has no corpus; name one with --data.corpus"
        )
    corpus = load_corpus(corpus_name or run.config.data.corpus, tokenizer=run.tokenizer)
    check_same_tokenizer(corpus, run.tokenizer, run.run_dir)
    if run.corpus:
        check_same_corpus(corpus, run.corpus, run.run_dir)
    return corpus.make_datasets(run.tokenizer, run.config)


def evaluate(
    run: Run,
    *,
    split: str = "val",
    stride: int | None = None,
    corpus: str | None = None,
    max_tokens: int | None = None,
    corpus_name: str | None = None,
) -> Evaluation:
    """Evaluates a run exactly: every token of the split but the first, predicted once.

    "First" means the first of each shard. Of a mixture, each corpus is evaluated and weighted.

    Args:
      run: the run.
      split: "val" or "train".
      stride: tokens from one window's start to the next; None is block_size. A smaller one gives
        each prediction more context, at more cost.
      corpus: the path of the run's corpus if it has moved.
      max_tokens: predict at most this many tokens of each corpus; None is all.
      corpus_name: an older name of `corpus`.
    """
    stride, max_tokens = plain(stride), plain(max_tokens)
    for name, number in (("stride", stride), ("max_tokens", max_tokens)):
        if number is not None and type(number) is not int:
            raise ConfigError(f"{name}={number!r} must be a whole number")
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens={max_tokens} must be at least 1")
    if split not in ("train", "val"):
        raise ConfigError(f"split={split!r} must be val or train")
    return evaluate_split(
        run.config.model,
        run.params,
        load_datasets(run, corpus_name if corpus is None else corpus)[split],
        run.tokenizer.token_bytes,
        stride=stride,
        train=run.config.train,
        max_tokens=max_tokens,
    )


def make_window_losses(
    model: ModelConfig,
    place_batch: Callable[[jax.Array], jax.Array] = lambda batch: batch,
    loss_chunk: int | None = None,
    is_masked: bool = False,
) -> Callable:
    """Returns window_losses(params, batches, firsts, lasts) -> summed losses, (W, B).

    For the exact evaluation: the windows of `make_windows`, in W batches (B, T + 1). A window's
    sum, in nats, is over its predictions in [first, last); if these are equal, it is 0. With
    is_masked the batches are marked, see `input_pipeline/loss_mask.py`, and what does not count is
    left out.
    """

    def window_losses(params, batches, firsts_WB, lasts_WB):
        def body(_, window):
            batch, firsts_B, lasts_B = window
            ids, marks = place_batch(batch), None
            if is_masked:
                ids, marks = unmark(ids)
            losses_BT = batch_losses(model, params, ids, None, loss_chunk)
            index_T = jnp.arange(model.block_size)
            counts_BT = (index_T >= firsts_B[:, None]) & (index_T < lasts_B[:, None])
            if marks is not None:
                counts_BT &= marks[:, 1:]
            return None, jnp.where(counts_BT, losses_BT, 0.0).sum(axis=1)

        return jax.lax.scan(body, None, (batches, firsts_WB, lasts_WB))[1]

    return window_losses
