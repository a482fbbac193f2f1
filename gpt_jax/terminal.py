"""What is safe to print: text from outside, commands for a shell, and output that fails.

Names, records and generated text may have any characters, and a terminal obeys some of them: each
message passes `visible`. Imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from pathlib import Path
from typing import IO, Any

# Control characters but tab and line feed, and those that change the direction of the text.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

lost_output: list[OSError] = []  # why output of a `Display` could not be written


def visible(text: Any) -> str:
    """Returns a text with its control characters shown, such as \\x1b, instead of obeyed."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(text))


def for_stream(text: str, stream: IO[str] | None) -> str:
    """Returns a text as it is; made `visible` where the stream is a terminal."""
    return visible(text) if stream is not None and stream.isatty() else text


def one_line(text: Any) -> str:
    """Returns a text `visible` and in one line."""
    return visible(" ".join(str(text).splitlines()))


def say(text: Any) -> None:
    """Prints a line to standard error; one that can't be written is nobody's loss."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(visible(text), file=sys.stderr, flush=True)


def quote(word: Any) -> str:
    """Returns a word as a shell reads it."""
    return shlex.quote(str(word))


def program() -> str:
    """Returns the command that started this process, as one types it.

    Where it is a script or notebook that imports the package: the command of a checkout.
    """
    path = Path(sys.argv[0])
    if path.parts[-2:] == ("gpt_jax", "__main__.py"):
        return "python -m gpt_jax"
    return "gpt_jax" if path.stem == "gpt_jax" else "python main.py"


def program_command(*words: Any) -> str:
    """Returns a command line of this program that can be pasted into a shell."""
    return f"{program()} {shell_command(*words)}"


def shell_command(*words: Any) -> str:
    """Returns a command line that can be pasted into a shell.

    A word after an option is its value: one that begins with - is joined to it, as argparse wants.
    """
    joined: list[str] = []
    for word in map(str, words):
        is_value = bool(joined) and joined[-1].startswith("--") and "=" not in joined[-1]
        if word.startswith("-") and is_value:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return shlex.join(joined)
