"""Where a text ends, however its characters arrive."""

import random

import numpy as np
import pytest

from gpt_jax.errors import ConfigError
from gpt_jax.inference.ending import Ending, check_stops, end_token
from gpt_jax.tokenizer import END_OF_TEXT, BpeTokenizer, CharTokenizer

CHARACTERS = "abc"


def decode(ids, last=False):
    return "".join(CHARACTERS[i] for i in ids)


def expected(text, stops):
    for n in range(len(text) + 1):
        complete = [stop for stop in stops if text[:n].endswith(stop)]
        if complete:
            return text[: n - max(map(len, complete))]
    return text


def test_a_text_ends_before_its_first_stop_wherever_it_is_cut():
    rng = random.Random(0)
    ended = 0
    for _ in range(3000):
        ids = [rng.randrange(3) for _ in range(12)]
        stops = ["".join(rng.choices(CHARACTERS, k=rng.randint(1, 4))) for _ in range(3)]
        stops = stops[: rng.randint(0, 3)]
        ending, shown, at = Ending(decode, stops, None), "", 0
        while at < len(ids):
            n = rng.randint(1, 5)
            shown += ending(np.array(ids[at : at + n]))
            assert expected(decode(ids), stops).startswith(shown)  # nothing is taken back
            at += n
        shown += ending([], last=True)
        assert shown == expected(decode(ids), stops)
        assert ending.is_done == any(stop in decode(ids) for stop in stops)
        ended += ending.is_done
    assert 300 < ended < 2900


def test_a_text_ends_at_the_end_of_text_token():
    ending = Ending(decode, ["ac"], 3)
    assert ending(np.array([1, 0])) == "b"  # "a" may begin a stop
    assert not ending.is_done
    assert ending(np.array([3, 1])) == "a"
    assert ending.is_done
    assert ending(np.array([1])) == ending([], last=True) == ""


def test_only_a_tokenizer_that_has_an_end_has_one():
    tokens = [bytes([i]) for i in range(256)]
    assert end_token(BpeTokenizer(tokens, ".", {END_OF_TEXT: 256})) == 256
    assert end_token(BpeTokenizer(tokens, ".", {})) is None
    assert end_token(CharTokenizer("abc")) is None


@pytest.mark.parametrize("stops", ["abc", ["a", ""], [1]])
def test_what_is_no_stop_is_one_line(stops):
    with pytest.raises(ConfigError, match=r"stop=.* must be texts"):
        check_stops(stops)
