"""`verify` passes here, and fails if a guarantee is broken."""

import json

import jax
import numpy as np
import pytest

import main
from gpt_jax import hf
from gpt_jax.analysis import verify
from gpt_jax.run import checkpoints
from gpt_jax.training import step


@pytest.mark.slow
def test_every_promise_is_kept_here(capsys):
    before = jax.config.values["jax_default_matmul_precision"]
    assert main.main(["verify"]) == 0
    out = capsys.readouterr().out
    assert out.count("\npass ") == 7
    assert "all 7 pass" in out
    assert "a run resumed after each chunk = an uninterrupted one (resumed 3 times)" in out
    assert jax.config.values["jax_default_matmul_precision"] == before


@pytest.fixture
def config(tmp_path):
    """The same for each test, so that programs in which nothing was broken are compiled once."""
    return verify._small_config(tmp_path)


def broken_mean(function, parts):
    """A sum where there should be a mean."""
    total = accumulate(function, parts)
    return jax.tree.map(lambda x: x * len(parts), total)


accumulate = step.accumulate_gradients


def other_weights(folder):
    config, params = load(folder)
    return config, {**params, "positions": params["positions"] + 1e-6}


load = hf.load


def shifted(config, batch_size):
    cache = init_cache(config, batch_size)
    return cache.replace(length=cache.length + 1)


init_cache = verify.init_cache


@pytest.mark.slow
@pytest.mark.usefixtures("changed_programs")
@pytest.mark.parametrize(
    ("name", "place", "attribute", "broken"),
    [
        ("accumulation", step, "accumulate_gradients", broken_mean),
        ("GPT-2", hf, "load", other_weights),
        ("KV cache", verify, "init_cache", shifted),
        ("damaged", checkpoints, "problem", lambda path: ""),
    ],
)
def test_a_broken_promise_is_found(
    config, tiny_config, finished_run, monkeypatch, name, place, attribute, broken
):
    if name == "damaged":
        finished_run(tiny_config, run_dir=config.run_dir)
    (check,) = (check for check in verify._checks(config) if name in check[0])
    monkeypatch.setattr(verify, "_checks", lambda config: [check])
    monkeypatch.setattr(place, attribute, broken)
    (result,) = verify.verify()
    assert result.difference > result.allowed  # not nan, which an error would leave


def test_an_error_is_a_failure_and_the_status_says_so(monkeypatch, capsys):
    def fail():
        raise OSError("no space left")

    def checks(config):
        return [("two are two", 0.0, lambda: (0.0, "")), ("it can be written", 0.0, fail)]

    monkeypatch.setattr(verify, "_checks", checks)
    assert main.main(["verify"]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 FAILED" in out
    assert "it can be written (OSError: no space left)" in out
    assert main.main(["verify", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["passed"] for row in rows] == [True, False]


def test_what_is_no_number_differs_without_end():
    assert verify._largest([np.nan], [0.0]) == np.inf
    assert verify._largest([1.0, 3.0], [1.0, 1.0]) == 2.0
