"""The error classes and their exit statuses, and suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class UserError(Exception):
    """A usage error: shown as one line, without a traceback. Exit status 2."""

    on_all_hosts = False  # whether every host raises it; see multihost.all_agree


class ConfigError(UserError):
    """A setting, or a combination of settings, that breaks a rule."""


class TrainingError(Exception):
    """Training cannot continue; saved checkpoints stay. Exit status 1."""

    on_all_hosts = False


class Diverged(TrainingError):
    """The loss, the gradient or a parameter is not finite any more, or the loss spiked."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped training after a checkpoint was saved. Exit status 128 + signum."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether a device of jax ran out of memory; jax need not be imported."""
    return type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)


class OutOfTime(Exception):
    """`train.max_minutes` have passed and a checkpoint is saved. Exit status 75: run it again."""


ALIASES = {"lr": "learning-rate", "wd": "weight-decay", "bs": "batch-size", "epochs": "steps"}


def suggest(word: str, known: Iterable[str]) -> str:
    """Returns '; did you mean ...?' where something known is close to `word`, else ''."""
    known = list(known)
    last = word.lstrip("-").rpartition(".")[2]
    if last in ALIASES:  # abbreviations of papers and other programs
        close = [name for name in known if name.replace("_", "-").endswith(ALIASES[last])]
    else:
        close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def differences(
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    show: Callable[[Any], str] = str,
    where: str = "here",
) -> list[str]:
    """Returns "NAME is A there and B here" for each name whose values differ.

    Args:
      there: the values to compare with; a name that is missing has None.
      here: the values by name, in the order of the lines.
      show: from a value to its text.
      where: the last word of a line.
    """
    return [
        f"{name} is {show(there.get(name))} there and {show(value)} {where}"
        for name, value in here.items()
        if there.get(name) != value
    ]
