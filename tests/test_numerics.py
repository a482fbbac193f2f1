"""Draws and types do not depend on the environment; what does is recorded."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import numerics
from gpt_jax.errors import UserError
from gpt_jax.prng import make_key, make_keys

HOSTILE = {
    "rbg": lambda: jax.default_prng_impl("rbg"),
    "unsafe_rbg": lambda: jax.default_prng_impl("unsafe_rbg"),
    "not partitionable": lambda: jax.threefry_partitionable(False),
    "x64": lambda: jax.enable_x64(True),
    "strict dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "strict ranks": lambda: jax.numpy_rank_promotion("raise"),
}


def draws():
    keys = make_keys(7)
    uniform = jax.random.uniform(keys.data, (33,))
    words = jax.random.bits(jax.random.fold_in(keys.dropout, 3), (5,), jnp.uint32)
    return uniform, words, jax.random.randint(keys.eval, (9,), 0, 1000), uniform + 1


@pytest.mark.parametrize("seed", [0, 1, 1337, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_seeds_key_is_the_one_that_jax_makes(seed):
    ours = (make_key(seed), jax.jit(make_key)(np.uint32(seed)))
    for key in ours:
        assert (jax.random.key_data(key) == jax.random.key_data(jax.random.key(seed))).all()
        assert jax.random.key_impl(key) == jax.random.key_impl(jax.random.key(seed))


def test_an_offset_of_seeds_in_the_environment_changes_no_key(monkeypatch):
    before = jax.random.key_data(make_key(5))
    jax.config.update("jax_random_seed_offset", 3)
    try:
        assert (jax.random.key_data(make_key(5)) == before).all()
    finally:
        jax.config.update("jax_random_seed_offset", 0)


@pytest.mark.parametrize("name", HOSTILE)
def test_draws_and_dtypes_are_those_of_the_defaults(name):
    expected = draws()
    with HOSTILE[name](), numerics.fixed():
        found = draws()
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_caller_keeps_its_own_numerics():
    with jax.enable_x64(True), jax.default_prng_impl("rbg"):
        with numerics.fixed():
            assert jnp.arange(2.0).dtype == jnp.float32
        assert jnp.arange(2.0).dtype == jnp.float64
        assert "rbg" in str(jax.random.key_impl(jax.random.key(0)))


def test_a_thread_computes_as_its_maker():
    found = {}

    def look():
        found["precision"] = numerics.asked_for()["matmul_precision"]
        found["dtype"] = jnp.arange(2.0).dtype

    with jax.default_matmul_precision("highest"):
        look = numerics.carried(look)
    before = jax.config.values["jax_enable_x64"]
    jax.config.update("jax_enable_x64", True)
    try:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    finally:
        jax.config.update("jax_enable_x64", before)
    assert found == {"precision": "highest", "dtype": jnp.float32}


def test_a_run_keeps_its_precision():
    numerics.check_kept(None, "run")  # an earlier release's: made under the defaults
    numerics.check_kept(numerics.asked_for(), "run")
    with jax.default_matmul_precision("highest"):
        numerics.check_kept(numerics.asked_for(), "run")
        for recorded in (
            None,
            {},
            {"matmul_precision": None},
            {"matmul_precision": "tensorfloat32"},
        ):
            with pytest.raises(
                UserError, match=r"run was begun with other numerics: matmul_pre.*JAX"
            ):
                numerics.check_kept(recorded, "run")
    for name, value in (("prng", "rbg"), ("partitionable", False), ("x64", True)):
        with pytest.raises(UserError, match=f"{name} is {value!r} there"):
            numerics.check_kept({**numerics.asked_for(), name: value}, "run")


def test_every_kept_value_has_its_default_and_way_out():
    assert numerics.KEPT.keys() == numerics.asked_for().keys()
    assert {name: default for name, (default, _) in numerics.KEPT.items()} == numerics.asked_for()


def test_what_changes_rounding_is_found():
    now = numerics.environment({"data": 2, "fsdp": 1, "tensor": 1, "sequence": 1})
    assert now["mesh"] == "2x1x1x1"
    assert numerics.changes(now, now) == {}
    assert numerics.changes({**now, "jax": "0.9"}, now) == {"jax": now["jax"]}
    # What is not recorded is unknown, but for how the program rounds: as the first that recorded.
    assert numerics.changes({"jax": now["jax"]}, now) == {"rounding": numerics.REVISION}
    assert numerics.REVISION > 1


def test_hosts_compare_the_options_that_change_a_computation():
    flags = numerics.flags()
    assert {"jax_default_matmul_precision", "jax_enable_x64", "jax_threefry_partitionable"} <= {
        *flags
    }
    assert not [name for name in flags if "cache" in name or "dir" in name]
    with jax.default_matmul_precision("highest"):
        changed = numerics.flags()
    assert [n for n in flags if flags[n] != changed[n]] == ["jax_default_matmul_precision"]
