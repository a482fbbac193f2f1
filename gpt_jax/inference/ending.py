"""Where a generated text ends: before the first of some texts, or at the end-of-text token.

Text arrives a few characters at a time, and what may be the beginning of a stop is held back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gpt_jax.errors import ConfigError
from gpt_jax.tokenizer import END_OF_TEXT, Tokenizer


def check_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """Returns the stops; raises ConfigError for one that is empty, or for a text in their place."""
    if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ConfigError(f"stop={stops!r:.60} must be texts, none of them empty")
    return tuple(stops)


def end_token(tokenizer: Tokenizer) -> int | None:
    """Returns the id of the end-of-text token; None in a vocabulary without one."""
    return getattr(tokenizer, "special_tokens", {}).get(END_OF_TEXT)


class Ending:
    """The text of one stream of tokens, up to its end.

    Attributes:
      is_done: whether the end has come; what follows is "".
    """

    def __init__(self, decode: Callable[..., str], stops: Sequence[str], end: int | None):
        """Takes `Tokenizer.make_decoder`'s function, the stops, and the token that ends a text."""
        self._decode, self._stops, self._end = decode, stops, end
        self._held, self.is_done = "", False

    def __call__(self, ids: np.ndarray | Sequence[int], last: bool = False) -> str:
        """Returns the text that is sure after these tokens; with `last`, all that was held back."""
        if self.is_done:
            return ""
        ended = [] if self._end is None else np.flatnonzero(np.asarray(ids) == self._end)
        if len(ended):
            ids, last, self.is_done = ids[: ended[0]], True, True
        self._held += self._decode(ids, last=last)
        found = [(self._held.find(stop), len(stop)) for stop in self._stops if stop in self._held]
        if found:  # the first that is complete, whatever comes at once
            self.is_done = True
            return self._held[: min(found, key=lambda stop: (sum(stop), stop))[0]]
        text, self._held = self._held, ""
        if last:
            return text
        longest = max(map(len, self._stops), default=1) - 1
        for n in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stops):
                text, self._held = text[:-n], text[-n:]
                break
        return text
