"""JSON values as typed records: a dataclass says what a file must hold, and nobody reads the raw.

A file may be another program's, or damaged: each value is compared with the type of its field.
What a class has no field for is ignored, so that later releases may add to a file.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

Record = TypeVar("Record")
NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def read_record(values: Any, kind: type[Record], where: str = "") -> Record:
    """Returns the `kind`, a dataclass, of a JSON object.

    Its fields are int (below 2^63), float, str, bool, Any, dataclasses, lists, dicts with texts as
    keys, or any of these or None. A field with a default may be missing.

    Raises:
      ValueError: a field is missing or of another type; the message names it.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'it'} is {values!r:.40}, not a JSON object")
    hints, read = _hints(kind), {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        name = f"{where}.{field.name}" if where else field.name
        if field.name in values:
            read[field.name] = _value(values[field.name], hints[field.name], name)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"it has no {name}")
    return kind(**read)


class NewerFormatError(ValueError):
    """A file of a later release, whose fields may be others."""


@dataclasses.dataclass(frozen=True)
class _Version:
    format: int


def read_versioned(values: Any, kind: type[Record], newest: int) -> Record:
    """Returns the `kind` of a JSON object whose field `format` numbers what it holds.

    Args:
      values: the object.
      kind: see `read_record`; it has the field, too.
      newest: the latest format that is known here; the first is 1.

    Raises:
      NewerFormatError: it has a later one, which is found before its other fields are read.
      ValueError: see `read_record`; or it has an earlier format than the first.
    """
    written = read_record(values, _Version).format
    if written > newest:
        raise NewerFormatError(
            f"has format {written}, from a newer gpt_jax; this one reads up to {newest}"
        )
    if written < 1:
        raise ValueError(f"its format is {written}")
    return read_record(values, kind)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _value(value: Any, hint: Any, name: str) -> Any:
    """Returns a JSON value as the type `hint`; raises ValueError, see `read_record`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        (hint,) = (each for each in inner if each is not type(None))
        return _value(value, hint, name)
    if dataclasses.is_dataclass(hint):
        return read_record(value, typing.cast(type, hint), name)
    if origin is list and isinstance(value, list):
        if _are_all(inner[0], value):
            return list(value)
        return [_value(each, inner[0], f"{name}[{i}]") for i, each in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        if _are_all(inner[1], value.values()):
            return dict(value)
        return {key: _value(each, inner[1], f"{name}.{key:.60}") for key, each in value.items()}
    if hint is Any:
        return value
    if hint is float and type(value) in (int, float) and abs(value) < 2**1023:
        return float(value)
    if hint is float and type(value) is float:  # infinite or not a number
        return value
    if type(value) is hint and (hint is not int or -(2**63) <= value < 2**63):
        return value
    what = NAMES.get(hint, "a list" if origin is list else "a JSON object")
    raise ValueError(f"{name} is {value!r:.40}, not {what}")


def _are_all(hint: Any, values: Collection[Any]) -> bool:
    """Returns whether all are what `hint` says, at once: a vocabulary has 50,000 of them."""
    if hint not in NAMES or hint is float or not set(map(type, values)) <= {hint}:
        return False
    return hint is not int or all(-(2**63) <= value < 2**63 for value in values)
