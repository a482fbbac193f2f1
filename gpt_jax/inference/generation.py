"""Text generation from a run: a prompt in, its continuation out, streamed as it is sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax import numerics
from gpt_jax.config import SampleConfig, override
from gpt_jax.errors import ConfigError
from gpt_jax.inference.decoding import Filters, generate_tokens
from gpt_jax.inference.ending import Ending, check_stops, end_token
from gpt_jax.prng import make_keys
from gpt_jax.run.load import Run
from gpt_jax.tokenizer import BpeTokenizer, Tokenizer

_keys = jax.jit(make_keys)


def stream(
    run: Run,
    prompt: str,
    settings: SampleConfig | None = None,
    *,
    seed: int | None = None,
    stop: Sequence[str] = (),
    special: bool = False,
) -> Iterator[list[str]]:
    """Continues a prompt; yields the next characters of each text as they are sampled.

    An empty prompt starts from a line break (or token 0, in a vocabulary without one), which is
    not part of the text. A character of several tokens is yielded with the last of them; one that
    the end cuts off is U+FFFD. A text ends before the tokenizer's end-of-text token.

    Args:
      run: the run.
      prompt: text that the tokenizer can encode.
      settings: of sampling; default: the run's. Its prompt is not used.
      seed: of sampling; default: the run's.
      stop: a text ends before the first of these that it comes to.
      special: special tokens in the prompt, as <|endoftext|>, are tokens, not ordinary text.

    Yields:
      num_samples texts, each to be appended to those before.

    Raises:
      UserError: the tokenizer can't encode the prompt, or top_k is above the vocabulary.
    """
    texts = _stream(run, prompt, settings, seed, stop, special)
    while True:
        with numerics.fixed():  # not while the caller has the turn
            pieces = next(texts, None)
        if pieces is None:
            return
        yield pieces


def _stream(
    run: Run,
    prompt: str,
    settings: SampleConfig | None,
    seed: int | None,
    stop: Sequence[str],
    special: bool,
) -> Iterator[list[str]]:
    settings = run.config.sample if settings is None else settings
    check_top_k(settings, run.tokenizer)
    seed = override(run.config, {} if seed is None else {"seed": seed}).seed
    ids = encode_prompt(run.tokenizer, prompt, special)
    key = sample_key(seed)
    stops, end = check_stops(stop), end_token(run.tokenizer)
    texts = [Ending(run.tokenizer.make_decoder(), stops, end) for _ in range(settings.num_samples)]
    for tokens_BT in generate_tokens(
        run.config.model,
        run.decode_params,
        ids,
        key,
        Filters(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p),
        max_new_tokens=settings.max_new_tokens,
        num_samples=settings.num_samples,
        window=settings.window,
    ):
        yield [text(row) for text, row in zip(texts, tokens_BT, strict=True)]
        if all(text.is_done for text in texts):
            return
    cut_off = [text([], last=True) for text in texts]
    if any(cut_off):
        yield cut_off


def sample_key(seed: int) -> jax.Array:
    """Returns the key from which texts are sampled, of a seed in [0, 2**32)."""
    return _keys(np.uint32(seed)).sample


def encode_prompt(tokenizer: Tokenizer, prompt: str, special: bool) -> np.ndarray:
    """Returns the ids of a prompt, at least one; see `stream`."""
    if not prompt:
        return np.array([tokenizer.start_token])
    if special and isinstance(tokenizer, BpeTokenizer):  # a vocabulary of characters has none
        return tokenizer.encode(prompt, tokenizer.special_tokens)
    return tokenizer.encode(prompt)


def generate(
    run: Run,
    prompt: str,
    *,
    seed: int | None = None,
    stop: Sequence[str] = (),
    special: bool = False,
    **settings: Any,
) -> str:
    """Returns the prompt and its continuation.

    Args:
      run: from `train` or `load_run`.
      prompt: text that the tokenizer can encode; may be empty.
      seed: of sampling; default: the run's.
      stop: the text ends before the first of these that it comes to.
      special: see `stream`.
      **settings: any field of SampleConfig (max_new_tokens, temperature, top_k, top_p, window) in
        place of the run's. For several texts at once, see `stream`.

    Raises:
      UserError: an unknown or invalid setting, or a prompt that the tokenizer can't encode.
    """
    if "num_samples" in settings:
        raise ConfigError("generate returns one text; gpt_jax.stream yields num_samples of them")
    try:
        chosen = dataclasses.replace(run.config.sample, num_samples=1, **settings)
    except TypeError as error:
        raise ConfigError(f"generate: {error}") from None
    pieces = stream(run, prompt, chosen, seed=seed, stop=stop, special=special)
    return prompt + "".join(texts[0] for texts in pieces)


def check_top_k(settings: SampleConfig, tokenizer: Tokenizer) -> None:
    """Raises ConfigError if top_k is larger than the vocabulary."""
    if settings.top_k is not None and settings.top_k > tokenizer.vocab_size:
        raise ConfigError(
            f"top_k={settings.top_k} is above the vocabulary of {tokenizer.vocab_size} tokens; "
            "use none for all of them"
        )
