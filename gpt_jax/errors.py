"""How things end that don't end well."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend: shown as one line, without a traceback. Exit status 2."""


class TrainingError(Exception):
    """Training can't go on; what was saved stays. Exit status 1."""


class Interrupted(KeyboardInterrupt):
    """A signal ended training after its state was saved. Exit status 128 + signum."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum
