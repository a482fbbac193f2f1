"""How a setting is declared: its default, help and rule, in a field of a frozen dataclass.

The functions here work on any such dataclass: they list its settings, read one from the text of a
command line or all from JSON, and check them. The settings themselves are in `run_config.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gpt_jax.errors import ConfigError, suggest


@functools.cache
def _type_hints(config_type: type) -> dict[str, Any]:
    """Returns the type of each field; `typing.get_type_hints` takes a millisecond."""
    return typing.get_type_hints(config_type)


def field(
    default: Any,
    help: str,
    rule: tuple[Callable[[Any], bool], str] | None = None,
    *,
    advice: str = "",
    unset: str = "",
    internal: bool = False,
) -> Any:
    """Declares a field of a config.

    Args:
      default: its default value.
      help: what it does, with its unit.
      rule: (test, its meaning in words), for a value that is not None.
      advice: what to try if the rule is broken.
      unset: what None stands for, shown as the default: "one per core".
      internal: set by the program, so not an option of the command line.
    """
    metadata = {"help": help, "rule": rule, "advice": advice, "unset": unset}
    return dataclasses.field(default=default, metadata=metadata | {"internal": internal})


POSITIVE_INT = (lambda x: x >= 1, "a whole number of at least 1")
NOT_NEGATIVE_INT = (lambda x: x >= 0, "a whole number of at least 0")
POSITIVE = (lambda x: 0 < x <= sys.float_info.max, "a finite number above 0")
NOT_NEGATIVE = (lambda x: 0 <= x <= sys.float_info.max, "a finite number of at least 0")
BELOW_ONE = (lambda x: 0 <= x < 1, "a number in [0, 1)")
FRACTION = (lambda x: 0 < x < 1, "a number between 0 and 1, both excluded")


def iter_fields(config_type: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """Yields (dotted name, type, field) for every setting, depth first."""
    hints = _type_hints(config_type)
    for field in dataclasses.fields(config_type):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from iter_fields(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hints[field.name], field


def get_field(config: Any, name: str) -> Any:
    """Returns the value of a dotted setting."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def default_text(config: Any, name: str, field: dataclasses.Field) -> str:
    """Returns the value of a dotted setting as --help shows it."""
    value = get_field(config, name)
    if value is None:
        return field.metadata["unset"]
    return repr(value) if value == "" else str(value)


def parse(text: str, hint: Any, name: str) -> Any:
    """Returns the value of type `hint` that a command line's text stands for.

    Raises:
      ConfigError: it stands for none.
    """
    if type(None) in typing.get_args(hint):
        if text.lower() == "none":
            return None
        hint, words = _alternatives(hint)
        if text.lower() in words:
            return text.lower()
    if hint is int:
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"{name} takes a whole number, not {text!r}") from None
    if hint is float:
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"{name} takes a number, not {text!r}") from None
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{name} takes true or false, not {text!r}")
        return text.lower() == "true"
    return text


def _alternatives(hint: Any) -> tuple[Any, tuple[str, ...]]:
    """Returns the type that a value has where it is not None, and the words that may stand for it.

    Of `int | Literal["auto"] | None` that is (int, ("auto",)).
    """
    if not (isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union):
        return hint, ()
    first, *others = (a for a in typing.get_args(hint) if a is not type(None))
    return first, tuple(word for other in others for word in typing.get_args(other))


def plain(value: Any) -> Any:
    """Returns the number, flag or text that a scalar of NumPy's or jax's stands for."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def check_fields(config: Any, prefix: str = "", bits: int = 63) -> None:
    """Raises ConfigError for the first field that has another type or breaks its rule.

    NumPy's scalars become Python's; the config is frozen, and this is its `__post_init__`. Whole
    numbers have so many bits: sizes of arrays 31, as jax has them.
    """
    hints = _type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value, hint = prefix + field.name, getattr(config, field.name), hints[field.name]
        if (kept := _in_bounds(name, plain(value), _alternatives(hint)[0], bits)) is not value:
            value = kept
            object.__setattr__(config, field.name, value)
        if field.metadata:
            _check_value(name, value, hint, field.metadata)
        elif not isinstance(value, hint):
            raise ConfigError(f"{name} must be a {hint.__name__}, not {value!r:.60}")


def _in_bounds(name: str, value: Any, hint: Any, bits: int) -> Any:
    """Returns a value; of a whole number that jax's integers can't hold the float that is meant.

    Raises:
      ConfigError: no float is meant.
    """
    if type(value) is not int or abs(value) < 2**31 or hint not in (int, float):
        return value
    if hint is float:
        if abs(value) < 2**1023:
            return float(value)
        return math.inf if value > 0 else -math.inf  # which no rule of a setting allows
    if hint is int and abs(value) < 2**bits:
        return value
    raise ConfigError(f"{name} is too large: a whole number of {value.bit_length()} bits")


def _check_value(name: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> None:
    if value is None and type(None) in typing.get_args(hint):
        return
    hint, words = _alternatives(hint)
    if isinstance(value, str) and value in words:
        return
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{name}={value!r:.80} must be one of {', '.join(choices)}")
        return
    if hint is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r:.80} must be true or false")
        return
    accepted = (int, float) if hint is float else hint
    if isinstance(value, bool) or not isinstance(value, accepted):
        kind = {int: "a whole number", float: "a number", str: "a text"}[hint]
        if hint is str and metadata["rule"]:
            kind = metadata["rule"][1]
        raise ConfigError(f"{name}={value!r:.80} must be {kind}")
    if metadata["rule"] and not metadata["rule"][0](value):
        advice = f"; {metadata['advice']}" if metadata["advice"] else ""
        raise ConfigError(f"{name}={value!r:.80} must be {metadata['rule'][1]}{advice}")


def from_nested_dict(values: Any, config_type: type, prefix: str = "") -> Any:
    """Returns the `config_type` of nested dicts; a missing setting keeps its default.

    Raises:
      ConfigError: a name is unknown, a value has another type or breaks a rule.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{prefix.rstrip('.') or 'the config'} must be settings, not {values!r:.60}"
        )
    hints = _type_hints(config_type)
    kwargs = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(f"unknown setting {prefix + str(name)!r}{suggest(str(name), hints)}")
        nested = dataclasses.is_dataclass(hints[name])
        kwargs[name] = from_nested_dict(value, hints[name], f"{prefix}{name}.") if nested else value
    return config_type(**kwargs)
