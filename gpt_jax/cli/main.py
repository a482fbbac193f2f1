"""The command line: finds the verb, runs its module, and turns an error into one line.

Its three doors are alike: `python main.py` in a checkout, `python -m gpt_jax`, and the command
`gpt_jax` once the package is installed. jax is imported only after the command line is parsed.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
from types import ModuleType
from typing import Any, NoReturn

from gpt_jax import devices
from gpt_jax.cli import VERBS
from gpt_jax.config import list_configs
from gpt_jax.config.files import checkout_dir
from gpt_jax.devices import keep_compiled_programs, retain_freed_memory
from gpt_jax.errors import (
    VERDICTS,
    ConfigError,
    OutOfTime,
    TrainingError,
    UserError,
    is_out_of_memory,
    suggest,
)
from gpt_jax.parallel.multihost import exit_process
from gpt_jax.terminal import lost_output, one_line, say

# Of a standard stream: a full disk, one that fails, one that was closed.
OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit status.

    That is 0, 1 (it failed), 2 (a usage error), 75 (out of time; run it again) or 128 + a signal;
    of `compare` and `trial` also 3 (no difference shown), 4 (worse) or 5 (ruled out).
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    try:
        if argv[:1] == ["help"]:
            argv = ["--help"]
        verb, rest = "train", argv
        if argv and not argv[0].startswith("-"):
            verb, rest = argv[0], argv[1:]
            if verb in list_configs():
                raise ConfigError(f"unknown verb {verb!r}; did you mean --config {verb}?")
            if verb not in VERBS:
                raise ConfigError(
                    f"unknown verb {verb!r}{suggest(verb, VERBS)}; there are {', '.join(VERBS)}"
                )
        keep_compiled_programs()
        retain_freed_memory()
        return _verb_module(verb).command(rest)
    except (UserError, TrainingError) as error:
        if debug:
            raise
        say(f"error: {one_line(error)}")
        return exit_process(error, 2 if isinstance(error, UserError) else 1)
    except OutOfTime as error:
        if debug:
            raise
        say(error)
        return 75
    except KeyboardInterrupt as error:
        if debug:
            raise
        say(str(error) or "interrupted")
        return 128 + getattr(error, "signum", signal.SIGINT)
    except BrokenPipeError:  # the reader went away, as in `| head`
        sys.stdout = None
        return 0
    except Exception as error:
        found = None if debug else _explain(error)
        if found is None:
            raise
        say(f"error: {one_line(found[0])}")
        return exit_process(error, found[1])


def _explain(error: Exception) -> tuple[str, int] | None:
    """Returns (a line, the exit status) for an error of the machine or of the environment."""
    if is_out_of_memory(error):
        return (
            f"the memory is too small: {str(error).splitlines()[0]}; use a device with "
            "more, or JAX_PLATFORMS=cpu for the machine's own memory"
        ), 1
    if problem := devices.environment_problem(error):
        return problem, 2
    if isinstance(error, MemoryError) or "Cannot allocate memory" in str(error):
        return f"the memory or the address space (ulimit -v) is too small: {error}", 1
    if isinstance(error, OSError) and error.filename is None and error.errno in OUTPUT_ERRORS:
        return f"cannot write the output: {error.strerror}", 1
    return None


def _output_status(status: int) -> int:
    """Returns the status of a command that is done; not 0 where what it printed was lost."""
    with contextlib.suppress(BrokenPipeError):
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError as error:
            lost_output.append(error)
            sys.stdout = None  # else it is flushed again
    told = status not in VERDICTS  # the command has told its own error
    if told or not lost_output:
        return status
    say(f"error: done, but cannot write the output: {lost_output[0].strerror}")
    return 1


def _verb_module(verb: str) -> ModuleType:
    """Imports the module of a verb; that of `prepare` is `data/cli.py`, in a checkout alone.

    Raises:
      UserError: there is no checkout.
    """
    if verb != "prepare":
        return importlib.import_module(f"gpt_jax.cli.{verb}")
    root = checkout_dir()
    if root is None:
        raise UserError(
            "prepare works in a checkout of the project only, because the installed package has "
            "no folder data/; run there: python main.py prepare"
        )
    if sys.path[0] != str(root):  # where we are, another package may have the name `data`
        sys.path.insert(0, str(root))
    return importlib.import_module("data.cli")


def run() -> None:
    """Runs the command line of this process, and ends the process where it fails."""
    _open_closed_streams()
    if "--debug" not in sys.argv:  # training takes over while it has something to save
        signal.signal(signal.SIGINT, _exit_at_once)
        signal.signal(signal.SIGTERM, _exit_at_once)
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows "?"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = main()
    except SystemExit as done:  # --help and --version
        status = int(done.code or 0)
    if status := _output_status(status):
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.flush()
        os._exit(status)  # at once: threads of a failed save may wait for ever


def _open_closed_streams() -> None:
    """Opens what is closed of the standard streams, lest a file of the run gets its number.

    Reading the input and writing the output then fail, as they should; errors are lost.
    """
    for number, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest number that is free
            if number == 1:
                sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            elif number == 2:
                sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _exit_at_once(signum: int, frame: Any) -> NoReturn:
    """Ends the program while there is nothing to save: an import swallows KeyboardInterrupt."""
    os.write(2, b"\x1b[?25hinterrupted\n" if os.isatty(2) else b"interrupted\n")
    os._exit(128 + signum)
