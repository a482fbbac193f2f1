"""The command line's options: made from the settings, and one line for each usage error."""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import Any, NoReturn

from gpt_jax.config import list_configs
from gpt_jax.config.fields import default_text, iter_fields, parse
from gpt_jax.errors import ConfigError, suggest

TABLE_INDENT = 20  # of the second column in the lists of verbs and configs


class Formatter(argparse.HelpFormatter):
    """argparse's, but no line is broken within a word, and line breaks of a description stay."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrap(" ".join(text.split()), width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for line in text.splitlines():
            rest = TABLE_INDENT if line.startswith("  ") else 0
            lines += _wrap(line, width - len(indent), rest) or [""]
        return "\n".join((indent + line).rstrip() for line in lines)


def _wrap(text: str, width: int, indent: int = 0) -> list[str]:
    """Returns lines of at most `width` characters, all but the first of them indented."""
    return textwrap.wrap(
        text,
        width,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


class Parser(argparse.ArgumentParser):
    """argparse with whole words only, and one line for a usage error."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **kwargs)

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:  # argparse's passes over an output that is full
            (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        if "expected one argument" in message:
            message += "; a value that begins with - is written as --setting=-value"
        raise ConfigError(f"{message} (see {self.prog} --help)")

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """Parses all arguments; an unknown one is an error that names the option it resembles."""
        args, rest = self.parse_known_args(_joined([_dashed(word) for word in argv]))
        if rest:
            known = [option for action in self._actions for option in action.option_strings]
            word = rest[0].partition("=")[0]
            what = "setting" if word.startswith("-") else "argument"
            if word in list_configs():
                raise ConfigError(f"unknown argument {word!r}; did you mean --config {word}?")
            raise ConfigError(
                f"unknown {what} {word!r}{suggest(word, known)} (see {self.prog} --help)"
            )
        return args


def _dashed(word: str) -> str:
    """Returns --model.n_layer as --model.n-layer: both are accepted."""
    option, equals, value = word.partition("=")
    return option.replace("_", "-") + equals + value if word.startswith("--") else word


def _joined(words: list[str]) -> list[str]:
    """Returns --option -1e-3 as --option=-1e-3, which argparse would take for another option."""
    joined: list[str] = []
    for word in words:
        try:
            follows = bool(joined) and joined[-1].startswith("--") and "=" not in joined[-1]
            number = word.startswith("-") and follows and float(word) <= 0
        except ValueError:
            number = False
        if number:
            joined[-1] += "=" + word
        else:
            joined.append(word)
    return joined


def add_settings(parser: Parser, config: Any, default: str = "") -> None:
    """Adds an option for each setting, with its help and its default.

    Args:
      parser: takes the options, in a group for each part of the config.
      config: a dataclass of settings, whose values are shown as the defaults.
      default: shown in place of every value, where another config has the defaults.
    """
    groups: dict[str, Any] = {}
    for name, hint, field in iter_fields(type(config)):
        if field.metadata["internal"]:
            continue
        title = name.rpartition(".")[0] or "settings"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        option = "--" + name.replace("_", "-")
        shown = default or default_text(config, name, field)
        groups[title].add_argument(
            option,
            dest=name,
            metavar="X",
            default=argparse.SUPPRESS,
            type=lambda text, hint=hint, option=option: parse(text, hint, option),
            help=f"{field.metadata['help']} (default: {shown})".replace("%", "%%"),
        )
