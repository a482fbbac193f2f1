"""The command line: `python main.py --config nano` trains, and `--help` says what else there is.

Finds the verb, lets it run (`gpt_jax/cli/`, a module for each) and turns a mistake into one
line. jax is imported only once the command line is known to be right.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from typing import Any, NoReturn

from gpt_jax.cli import VERBS
from gpt_jax.config import list_configs
from gpt_jax.devices import keep_compiled_programs, retain_freed_memory
from gpt_jax.errors import (
    ConfigError,
    OutOfTime,
    TrainingError,
    UserError,
    is_out_of_memory,
    suggest,
)
from gpt_jax.parallel.multihost import exit_process


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns 0, 1 (it failed), 2 (a mistake) or 128 + a signal."""
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
        module = "data.cli" if verb == "prepare" else f"gpt_jax.cli.{verb}"
        return importlib.import_module(module).command(rest)
    except (UserError, TrainingError) as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return exit_process(error, 2 if isinstance(error, UserError) else 1)
    except RuntimeError as error:
        if debug or not is_out_of_memory(error):
            raise
        print(
            f"error: the memory is too small: {str(error).splitlines()[0]}; use a device with "
            "more, or JAX_PLATFORMS=cpu for the machine's own memory",
            file=sys.stderr,
        )
        return 1
    except OutOfTime as error:
        if debug:
            raise
        print(error, file=sys.stderr)
        return 75
    except KeyboardInterrupt as error:
        if debug:
            raise
        print(str(error) or "interrupted", file=sys.stderr)
        return 128 + getattr(error, "signum", signal.SIGINT)
    except BrokenPipeError:  # the reader went away, as in `| head`
        sys.stdout = None
        return 0


def _leave(signum: int, frame: Any) -> NoReturn:
    """Ends the program while there is nothing to lose: an import swallows KeyboardInterrupt."""
    os.write(2, b"\x1b[?25hinterrupted\n" if os.isatty(2) else b"interrupted\n")
    os._exit(128 + signum)


if __name__ == "__main__":
    if "--debug" not in sys.argv:  # training takes over while it has something to save
        signal.signal(signal.SIGINT, _leave)
        signal.signal(signal.SIGTERM, _leave)
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows "?"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if status := main():
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(status)  # at once: threads of a save that failed may wait for what never comes
