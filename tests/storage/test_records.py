"""JSON values as typed records: each value of each type in the place of each other."""

import dataclasses
import json
import math
from typing import Any

import pytest

from gpt_jax.storage import NewerFormatError, read_record, read_versioned


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int
    name: str = "none"


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int
    share: float
    inner: Inner
    named: dict[str, Inner]
    some: list[int]
    maybe: float | None = None
    free: Any = None


SOUND = {
    "count": 3,
    "share": 0.5,
    "inner": {"size": 1, "unknown": [1]},
    "named": {"a": {"size": 2, "name": "b"}},
    "some": [1, 2],
    "later": {"ignored": True},
}


def test_a_sound_record():
    found = read_record(SOUND, Outer)
    assert found == Outer(3, 0.5, Inner(1), {"a": Inner(2, "b")}, [1, 2])
    assert read_record(SOUND | {"maybe": 1}, Outer).maybe == 1.0
    assert read_record(SOUND | {"free": [{}]}, Outer).free == [{}]
    assert math.isnan(read_record(SOUND | {"share": math.nan}, Outer).share)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": True}, "count is True, not a whole number"),
        ({"count": 3.0}, "count is 3.0, not a whole number"),
        ({"count": 2**63}, "count is 9223372036854775808, not a whole number"),
        ({"share": "1"}, "share is '1', not a number"),
        ({"share": 10**400}, "share is 1000.*, not a number"),
        ({"share": None}, "share is None, not a number"),
        ({"inner": []}, r"inner is \[\], not a JSON object"),
        ({"inner": {}}, "it has no inner.size"),
        ({"inner": {"size": 1, "name": 2}}, "inner.name is 2, not a text"),
        ({"named": {"a": 1}}, "named.a is 1, not a JSON object"),
        ({"some": {}}, r"some is \{\}, not a list"),
        ({"some": [1, "2"]}, r"some\[1\] is '2', not a whole number"),
        ({"maybe": "x"}, "maybe is 'x', not a number"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        read_record(SOUND | change, Outer)


def test_a_missing_field_and_no_object():
    with pytest.raises(ValueError, match="it has no count"):
        read_record({k: v for k, v in SOUND.items() if k != "count"}, Outer)
    for value in (None, 1, "x", [1]):
        with pytest.raises(ValueError, match="not a JSON object"):
            read_record(json.loads(json.dumps(value)), Outer)


def test_many_values_at_once_are_those_one_by_one():
    @dataclasses.dataclass
    class Many:
        words: list[str]
        ids: dict[str, int]

    words, ids = [str(i) for i in range(1000)], {str(i): i for i in range(1000)}
    assert read_record({"words": words, "ids": ids}, Many) == Many(words, ids)
    for at, wrong in ((500, None), (999, 3), (0, ["x"])):
        with pytest.raises(ValueError, match=rf"words\[{at}\] is .*, not a text"):
            read_record({"words": [*words[:at], wrong, *words[at + 1 :]], "ids": ids}, Many)
    for wrong in (True, 1.0, 2**63, -(2**63) - 1, "1"):
        with pytest.raises(ValueError, match=r"ids\.7 is .*, not a whole number"):
            read_record({"words": words, "ids": {**ids, "7": wrong}}, Many)


@dataclasses.dataclass
class Versioned:
    format: int
    name: str


def test_a_file_of_a_known_format():
    assert read_versioned({"format": 2, "name": "a"}, Versioned, 2) == Versioned(2, "a")
    assert read_versioned({"format": 1, "name": "a"}, Versioned, 2) == Versioned(1, "a")


@pytest.mark.parametrize("others", [{}, {"name": 3}, {"name": "a", "more": None}])
def test_a_newer_format_is_found_before_fields_that_differ(others):
    with pytest.raises(NewerFormatError, match=r"has format 3, from a newer .* reads up to 2"):
        read_versioned({"format": 3, **others}, Versioned, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a"}, "it has no format"),
        ({"format": 0, "name": "a"}, "its format is 0"),
        ({"format": -1, "name": "a"}, "its format is -1"),
        ({"format": True, "name": "a"}, "format is True, not a whole number"),
        ({"format": "2", "name": "a"}, "format is '2', not a whole number"),
        ({"format": 2}, "it has no name"),
        ([], "not a JSON object"),
    ],
)
def test_a_format_that_cant_be_is_named(values, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_versioned(values, Versioned, 2)
    assert not isinstance(caught.value, NewerFormatError)
