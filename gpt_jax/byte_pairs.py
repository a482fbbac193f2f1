"""Learning byte pairs from a text, by `tokenizers`, with progress and a warning of long words.

The rest of tokenizing is in `tokenizer.py`.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Generator, Iterator
from typing import Any, Protocol

CHUNK_CHARACTERS = 100_000  # of the text, passed on at once: bounds the memory
LONG_WORD = 1_000  # characters; twice this doubles the time, 100,000 take 30 times as long
SPACES = re.compile(r"\s{2,}")
TICK_SECONDS = 1.0


class Listener(Protocol):
    """Who is told how far the learning is, such as a `console.Display`."""

    def working(self, what: str) -> None:
        """Takes what is being done, again and again."""

    def note(self, text: str) -> None:
        """Takes a warning."""


class Silence:
    """Nobody."""

    def working(self, what: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def learn(text: str, vocab_size: int, pattern: str, listener: Listener) -> Any:
    """Returns a `tokenizers.Tokenizer` with at most `vocab_size` tokens, the 256 bytes included.

    Args:
      text: the training text.
      vocab_size: number of tokens.
      pattern: the regular expression whose matches, the words, no pair of bytes leaves.
      listener: is told every second how far it is, and once of words above LONG_WORD characters.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
    at_most = 256 + 4 * len(text)  # memory is reserved for all that are asked for
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, at_most),
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    chunks = _Chunks(text, pattern, listener)
    with _ticking(chunks, listener):
        learner.train_from_iterator(chunks, trainer)
    return learner


class _Chunks:
    """The chunks of a text, and how far they have been read."""

    def __init__(self, text: str, pattern: str, listener: Listener):
        self._text, self._pattern, self._listener = text, pattern, listener
        self._read = 0

    def __iter__(self) -> Iterator[str]:
        has_warned = False
        for start in range(0, len(self._text), CHUNK_CHARACTERS):
            chunk = self._text[start : start + CHUNK_CHARACTERS]
            if not has_warned and (word := long_word(chunk, self._pattern)):
                has_warned = True
                self._listener.note(
                    f"the text has words of more than {LONG_WORD:,} characters (one begins "
                    f"{word[:20]!r}), from which learning byte pairs takes long; spaces or line "
                    "ends in them make it faster"
                )
            yield chunk
            self._read = start + len(chunk)

    def describe(self) -> str:
        if self._read < len(self._text):
            share = 100 * self._read / len(self._text)
            return f"learning byte pairs: {share:.0f}% of the text is cut into words"
        return "learning byte pairs: merging the most frequent"


def long_word(text: str, pattern: str) -> str | None:
    """Returns the first word of a text above LONG_WORD characters; None where there is none.

    No word goes from a space to what is none and on to a space, so most of a text is passed over.
    """
    import regex

    for run in (*text.split(), *SPACES.findall(text)):
        if len(run) > LONG_WORD:
            for found in regex.finditer(pattern, run):
                if len(found[0]) > LONG_WORD:
                    return found[0]
    return None


@contextlib.contextmanager
def _ticking(chunks: _Chunks, listener: Listener) -> Generator[None]:
    """Tells the listener regularly, from a thread: merging is one call without a break."""
    is_done = threading.Event()

    def tick() -> None:
        while not is_done.wait(TICK_SECONDS):
            listener.working(chunks.describe())

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()
