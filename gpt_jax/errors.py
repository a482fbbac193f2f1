"""How things end that don't end well, and the suggestion that goes with a word misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend: shown as one line, without a traceback. Exit status 2."""


class TrainingError(Exception):
    """Training can't go on; what was saved stays. Exit status 1."""


class Interrupted(KeyboardInterrupt):
    """A signal ended training after its state was saved. Exit status 128 + signum."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


SHORT = {"lr": "learning-rate", "wd": "weight-decay", "bs": "batch-size", "epochs": "steps"}


def suggest(word: str, known: Iterable[str]) -> str:
    """Returns '; did you mean ...?' where something known is close to `word`, else ''."""
    known = list(known)
    last = word.lstrip("-").rpartition(".")[2]
    if last in SHORT:  # what papers and other programs say
        close = [name for name in known if name.replace("_", "-").endswith(SHORT[last])]
    else:
        close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
