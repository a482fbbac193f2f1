"""What a page gets of a run's model: states, rounding, quoted lines, or why it gets none."""

import base64
import dataclasses
import json
import re
import shutil
import types
from email.message import Message
from pathlib import Path

import jax
import numpy as np
import pytest

import gpt_jax
from gpt_jax.config import override
from gpt_jax.inference.evaluation import evaluate
from gpt_jax.report import live
from gpt_jax.run.load import load_run
from gpt_jax.tokenizer import CharTokenizer


@pytest.fixture
def run_dir(tiny_config, finished_run):
    return finished_run(tiny_config, **{"train.keep_interval": 4}).run_dir


def arrays_of(made: dict, state: int) -> dict[str, np.ndarray]:
    text, at, arrays = made["states"][state]["values"], 0, {}
    numbers = np.frombuffer(base64.b64decode(text), "<f2")
    for name, shape in made["arrays"]:
        size = int(np.prod(shape))
        arrays[name] = numbers[at : at + size].reshape(shape)
        at += size
    assert at == len(numbers)
    return arrays


def test_the_states_are_the_runs_rounded(run_dir):
    made = live.make_live_model(run_dir, measure=False)
    assert [state["step"] for state in made["states"]] == [0, 4, 8, 12]
    for i, step in enumerate((4, 8, 12), 1):
        expected = live.export_params(load_run(run_dir, step).params)
        assert arrays_of(made, i).keys() == expected.keys()
        for name, x in arrays_of(made, i).items():
            np.testing.assert_array_equal(x, expected[name], err_msg=name)
    kernel = load_run(run_dir).params["blocks"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(
        arrays_of(made, 3)["blocks/mlp/up/kernel"], kernel.astype("float16").swapaxes(1, 2)
    )
    json.dumps(made, allow_nan=False)


def test_step_0_is_made_from_the_seed(run_dir, tiny_config):
    """The first loss of the run is that of these parameters."""
    made, rows = live.make_live_model(run_dir, measure=False), load_run(run_dir).rows
    scales = [x for name, x in arrays_of(made, 0).items() if name.endswith("scale")]
    assert all((x == 1).all() for x in scales)
    run = load_run(run_dir, 4)
    params = jax.jit(live._initial_params, static_argnums=0)(run.config)
    for name, x in live.export_params(params).items():
        np.testing.assert_array_equal(x, arrays_of(made, 0)[name], err_msg=name)
    start = dataclasses.replace(run, params=params)
    assert evaluate(start).nats_per_token == pytest.approx(rows[0]["val_loss"], abs=0.05)


def test_a_run_that_began_with_others_parameters_has_no_step_0(run_dir, tiny_config, tmp_path):
    config = override(
        tiny_config,
        {"run_dir": str(tmp_path / "tuned"), "init_from": str(run_dir), "train.steps": 4},
    )
    gpt_jax.train(config, quiet=True)
    made = live.make_live_model(config.run_dir, measure=False)
    assert [state["step"] for state in made["states"]] == [4]


def test_the_rounding_is_measured_exactly(run_dir):
    rounding = live.make_live_model(run_dir)["rounding"]
    run = load_run(run_dir)
    assert rounding["exact"] == pytest.approx(evaluate(run).nats_per_token, abs=1e-6)
    rounded = dataclasses.replace(run, params=live.round_params(run.params))
    assert rounding["rounded"] == pytest.approx(evaluate(rounded).nats_per_token, abs=1e-6)
    assert rounding["exact"] != rounding["rounded"]
    assert rounding["is_whole"]


def test_without_the_corpus_the_page_says_so(run_dir):
    (run_dir.parent / "book.txt").unlink(missing_ok=True)
    config = json.loads((run_dir / "config.json").read_text())
    config["data"]["corpus"] = str(run_dir / "gone.txt")
    (run_dir / "config.json").write_text(json.dumps(config))
    assert "gone.txt" in live.make_live_model(run_dir)["rounding"]["why"]


def test_a_damaged_checkpoint_is_left_out(run_dir):
    shutil.rmtree(run_dir / "checkpoints" / "00000008" / "state")
    made = live.make_live_model(run_dir, measure=False)
    assert [state["step"] for state in made["states"]] == [0, 4, 12]
    (note,) = made["notes"]
    assert note.startswith("without the state of step 8: ")


@pytest.mark.parametrize(("most", "steps"), [(1, [12]), (2, [0, 12]), (3, [0, 8, 12])])
def test_states_that_the_limit_leaves_out_are_said(run_dir, most, steps):
    made = live.make_live_model(run_dir, measure=False)
    assert (made["notes"], made["has_room"], made["found"]) == ([], True, 4)
    size = len(made["states"][0]["values"])
    made = live.make_live_model(run_dir, measure=False, max_bytes=size * (most + 1) - 1)
    assert [state["step"] for state in made["states"]] == steps
    (note,) = made["notes"]
    left_out = f"the page's limit leaves no room for {4 - most} more"
    assert note == f"{most} of 4 states of training: {left_out}"
    assert not made["has_room"]  # where keeping more of them would not help


def test_a_page_that_has_as_many_states_as_it_may_asks_for_no_more(run_dir, monkeypatch):
    monkeypatch.setattr(live, "MAX_STATES", 2)
    made = live.make_live_model(run_dir, measure=False)
    assert (made["notes"], made["has_room"], made["found"]) == ([], False, 4)


def test_a_state_that_half_precision_can_not_hold_is_said(run_dir, monkeypatch):
    def load_large(run_dir, step):
        run = load_run(run_dir, step)
        factor = 1e9 if step in grown else 1.0
        return dataclasses.replace(run, params=jax.tree.map(lambda x: x * factor, run.params))

    grown = {4, 8}
    monkeypatch.setattr(live, "load_run", load_large)
    made = live.make_live_model(run_dir, measure=False)
    assert [state["step"] for state in made["states"]] == [0, 12]
    said = "without the state of step {}: half precision can't hold it"
    assert made["notes"] == [said.format(4), said.format(8)]


@pytest.mark.parametrize("by", [0.0009, -0.0011, 0.5])
def test_a_rounding_that_changes_too_much_is_said(run_dir, monkeypatch, by):
    def evaluate_made_up(run, max_tokens):
        changed = run.params is rounded[0]
        return types.SimpleNamespace(nats_per_token=2.0 + by * changed, is_whole=True, tokens=9)

    def round_and_remember(params):
        rounded.append(live_round(params))
        return rounded[0]

    rounded, live_round = [], live.round_params
    monkeypatch.setattr(live, "round_params", round_and_remember)
    monkeypatch.setattr(live, "evaluate", evaluate_made_up)
    made = live.make_live_model(run_dir)
    assert made["rounding"]["rounded"] == 2.0 + by
    said = f"not quite the run's model: half precision changes its loss by {abs(by):.4f}"
    assert made["notes"] == ([said] if abs(by) > 0.001 else [])


@pytest.mark.parametrize(
    ("options", "changes", "reason"),
    [
        ({"max_parameters": 100}, {}, r"It has [\d,]+ parameters, and a page holds at most 100\."),
        ({"max_bytes": 1000}, {}, r"take \d+\.\d MB, more than is left of the page's size"),
        ({}, {"ACTIVATIONS": ()}, r"not know how to compute model\.activation=relu\."),
        (
            {},
            {"unknown_settings": lambda model: ["model.x=1", "model.y=2"]},
            r"not know how to compute model\.x=1, model\.y=2\.",
        ),
    ],
)
def test_a_model_that_the_page_can_not_have_gives_the_reason(
    run_dir, monkeypatch, options, changes, reason
):
    for name, value in changes.items():
        monkeypatch.setattr(live, name, value)
    (text,) = live.make_live_model(run_dir, **options).values()
    assert re.search(reason, text)


def test_states_are_spread_and_the_newest_is_always_there():
    assert live.spread_out([0, 4], 5) == [0, 4]
    assert live.spread_out([0, 1, 2, 3, 4, 5, 6, 7, 8], 5) == [0, 2, 4, 6, 8]
    assert live.spread_out(list(range(100)), 2) == [0, 99]
    assert live.spread_out([0, 4, 8], 1) == [8]
    for n in range(1, 30):
        for most in range(1, 6):
            chosen = live.spread_out(list(range(n)), most)
            assert len(chosen) == len(set(chosen)) == min(n, most)
            assert chosen[-1] == n - 1


def test_what_half_precision_can_not_hold_is_noticed():
    assert np.isinf(live.export_params({"a": np.float32([1e6])})["a"]).all()


@pytest.mark.parametrize("view", live.CODE)
def test_the_quoted_lines_are_there_and_short(view):
    quoted = live.quote(*live.CODE[view])
    lines = quoted["text"].split("\n")
    assert 1 <= len(lines) <= 12
    assert not lines[0].startswith(" ")
    source = (Path(live.__file__).parents[2] / quoted["path"]).read_text("utf-8").split("\n")
    assert source[quoted["line"] - 1].strip() == lines[0]


def test_quoted_lines_are_linked_where_the_project_has_an_address(monkeypatch):
    urls = Message()
    monkeypatch.setattr(live, "metadata", lambda name: urls)
    assert live.quote(*live.CODE["lens"])["url"] is None
    urls["Project-URL"] = "Homepage, https://elsewhere.example"
    urls["Project-URL"] = "Source, https://example.org/gpt/blob/main"
    quoted = live.quote(*live.CODE["lens"])
    assert quoted["url"] == (
        f"https://example.org/gpt/blob/main/gpt_jax/model/gpt.py#L{quoted['line']}"
    )


def test_byte_pairs_of_another_pattern_are_refused():
    from test_live_tokenizer import bpe

    model = gpt_jax.config.ModelConfig(vocab_size=10)
    other = bpe(r"\p{L}+|\P{L}+")
    assert "pattern" in live._why_not(model, other, 1, 2, 1, 1)
    assert not live._why_not(model, CharTokenizer("ab"), 1, 2, 1, 1)
