"""The words of errors that several parts of the program share."""

from gpt_jax.errors import differences


def test_differences_are_named_in_the_order_of_what_is_here():
    there, here = {"a": 1, "b": "x", "only there": 0}, {"c": None, "b": "y", "a": 1, "d": 2}
    assert differences(there, here) == ["b is x there and y here", "d is None there and 2 here"]
    assert differences(there, {"b": "y"}, repr, "on host 0") == ["b is 'x' there and 'y' on host 0"]
    assert differences(there, there) == []
