"""What the hosts of a run must have in common before the first step.

Each host reads the settings, the corpus and the initial parameters for itself. What is compared is
made of the fields of what they have read, one by one: a field that is added later is compared too,
or is an error here.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from gpt_jax import numerics
from gpt_jax.config import Config
from gpt_jax.config.fields import get_field, iter_fields
from gpt_jax.input_pipeline.dataset import Corpus
from gpt_jax.tokenizer import Tokenizer

ENDS = 1 << 12  # of a long array of ids, at either end; the corpus has sums
PLACES = ("path", "source", "lineage")  # of an origin: where a host has it
NESTED = ("branch",)  # whose own fields are compared one by one


def compared_on_hosts(setup: Any) -> dict[str, Any]:
    """Returns {name: value} of all that reaches the computation, for JSON.

    Args:
      setup: a dataclass, see `run_setup.RunSetup`.
    """
    values = {**numerics.environment({}), **numerics.asked_for(), **numerics.flags()}
    return values | _fields(setup)


def _fields(setup: Any) -> dict[str, Any]:
    values = {}
    for field in dataclasses.fields(setup):
        values |= _described(field.name, getattr(setup, field.name))
    return values


def _described(name: str, value: Any) -> dict[str, Any]:
    """Returns what to compare of one field: its parts by name, or one sum."""
    if isinstance(value, Config):
        return {each: get_field(value, each) for each, _, _ in iter_fields(Config)}
    if isinstance(value, Corpus):
        return {f"the {name}'s sha256": value.sha256}
    if isinstance(value, Tokenizer):
        return {f"the {name}'s sha256": digest(value.to_json())}
    if name in NESTED and value is not None:
        return {f"the {name}'s {part}": each for part, each in _fields(value).items()}
    if name == "origin" and value is not None:
        value = {part: each for part, each in value.items() if part not in PLACES}
    if value is None or isinstance(value, bool):
        return {name: value}
    return {f"the sum of {name}": digest(value)}


def digest(value: Any) -> str:
    """Returns one sum of nested containers, dataclasses, numbers, texts and arrays.

    Raises:
      TypeError: there is something of another kind.
    """
    sums = hashlib.sha256()
    _add(sums, value)
    return sums.hexdigest()[:16]


def _add(sums: Any, value: Any) -> None:
    if value is None or isinstance(value, bool | int | float | str | Fraction):
        sums.update(f"{type(value).__name__} {value!r};".encode("utf-8", "surrogatepass"))
    elif isinstance(value, np.memmap):  # the sums of such files are compared
        sums.update(f"mapped {value.dtype} {value.shape};".encode())
        _add(sums, [np.array(value[:ENDS]), np.array(value[-ENDS:])])
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.ascontiguousarray(value)
        sums.update(f"array {array.dtype} {array.shape};".encode())
        sums.update(array.data)
    elif isinstance(value, Mapping):
        _add(sums, [list(pair) for pair in sorted(value.items())])
    elif isinstance(value, list | tuple):
        sums.update(f"{len(value)} of;".encode())
        for each in value:
            _add(sums, each)
    elif dataclasses.is_dataclass(value):
        _add(sums, [getattr(value, field.name) for field in dataclasses.fields(value)])
    else:
        raise TypeError(f"{type(value).__name__} can't be compared between hosts")
