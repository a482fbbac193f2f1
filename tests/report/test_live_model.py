"""The model in the page is jax's: logits, attention, residual stream and decoding, each option."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from script_engine import scripts

import gpt_jax
from gpt_jax.config import Config, ModelConfig
from gpt_jax.config.activations import ACTIVATIONS
from gpt_jax.model import GPT
from gpt_jax.report import live
from gpt_jax.run.load import Run
from gpt_jax.tokenizer import CharTokenizer

PROMPT = "bcafgabk"
GPT2 = {"tied": True, "qkv_bias": True, "head_bias": False, "activation": "gelu"}
OPTIONS = {
    "nano": {},
    "gpt2": GPT2,
    "exact gelu, no biases": {"activation": "gelu_exact", "bias": False, "n_embd": 20},
    "modern": {
        "n_head": 4, "n_kv_head": 2, "positions": "rotary", "qk_norm": True, "norm": "rms",
        "activation": "swiglu", "tied": True,
    },
    "one key head, a base, a scale": {
        "n_head": 4, "n_kv_head": 1, "positions": "rotary", "rotary_base": 7.0,
        "attention_scale": 0.3, "inverse_layer_scale": True, "head_bias": False, "vocab_size": 13,
    },
    "epsilon, a wide MLP": {
        "norm_epsilon": 3.0, "norm": "rms", "qk_norm": True, "mlp_width": 37,
        "activation": "relu2", "n_layer": 1, "bias": False, "qkv_bias": True,
    },
}  # fmt: skip
# What changes no logits: size of the context, training, the way to compute.
NOT_OF_LOGITS = {"block_size", "dropout", "attention_dropout", "embedding_dropout", "attention"}
NOT_OF_LOGITS |= {"residual_init_scale", "dtype", "remat"}
MAKE = """
  const model = new Model(live.model, decodeParameters(live.arrays, live.values));
"""


def make_run(**options) -> Run:
    """A run in memory whose parameters are not alike, rounded as those of a page."""
    model = dataclasses.replace(TINY, embedding_dropout=0.1)
    model = dataclasses.replace(model, **options)
    shapes = jax.eval_shape(GPT(model).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    random = np.random.default_rng(0)

    def draw(path, x):
        return random.normal(1.0 if path[-1].key == "scale" else 0.0, 0.3, x.shape)

    params = jax.tree_util.tree_map_with_path(draw, shapes["params"])
    params = live.round_params(jax.tree.map(jnp.float32, params))
    return Run(
        Path("run"), Config(model=model), {}, CharTokenizer("abcdefghijklmnopq"[:model.vocab_size]),
        GPT(model), params, 0, [], {},
    )  # fmt: skip


def exported(run: Run) -> dict:
    arrays = live.export_params(run.params)
    return {
        "model": dataclasses.asdict(run.config.model),
        "arrays": [[name, list(x.shape)] for name, x in arrays.items()],
        "values": live.to_base64(arrays),
    }


@pytest.fixture(scope="module", params=OPTIONS)
def run(request):
    return make_run(**OPTIONS[request.param])


@pytest.fixture(scope="module")
def found(run):
    return gpt_jax.activations(run, PROMPT)


def test_logits_attention_and_stream_are_jaxs(run, found):
    body = MAKE + "const trace = {}; trace.logits = model.forward(model.newCache(), ids, {trace});"
    ours = scripts()(body + "return trace;", live=exported(run), ids=found.ids.tolist())
    for name in ("logits", "attention", "residual"):
        theirs = getattr(found, name)
        np.testing.assert_allclose(
            np.reshape(ours[name], theirs.shape), theirs, atol=1e-4, rtol=0, err_msg=name
        )


def test_the_cache_and_the_last_position_alone_give_the_same_logits(run, found):
    body = (
        MAKE
        + """
      const cache = model.newCache(), rows = [model.forward(cache, ids.slice(0, 5))];
      for (const id of ids.slice(5)) rows.push(model.forward(cache, [id]));
      const last = model.forward(model.newCache(), ids, {lastOnly: true});
      return [rows.flatMap((row) => Array.from(row)), last];
    """
    )
    cached, last = scripts()(body, live=exported(run), ids=found.ids.tolist())
    cached = np.reshape(cached, found.logits.shape)
    np.testing.assert_allclose(cached, found.logits, atol=1e-4, rtol=0)
    np.testing.assert_allclose(last, found.logits[-1], atol=1e-4, rtol=0)


def test_the_output_head_reads_any_row_of_the_stream(run, found):
    row = found.residual[-1][3].tolist()
    logits = scripts()(MAKE + "return model.readOut(row);", live=exported(run), row=row)
    np.testing.assert_allclose(logits, found.logits[3], atol=1e-4, rtol=0)


def test_every_setting_that_changes_logits_is_among_the_options():
    """A new one must be computed by model.js too, or `make_live_model` refuse it."""
    varied = {name for options in OPTIONS.values() for name in options}
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    assert varied | NOT_OF_LOGITS == names
    activations = {o.get("activation", "relu") for o in OPTIONS.values()}
    assert set(live.ACTIVATIONS) == activations == set(ACTIVATIONS)
    assert set(scripts()("return Object.keys(ACTIVATIONS);")) == activations


def test_numbers_survive_the_way_into_the_page():
    """Every finite float16, and arrays of 1 to 5 numbers, whose base64 ends differently."""
    bits = np.arange(2**16, dtype=np.uint16).view(np.float16)
    for x in (bits[np.isfinite(bits)], *(np.arange(n, dtype=np.float16) for n in range(1, 6))):
        call = "return decodeParameters([['x', [n]]], text).x;"
        ours = scripts()(call, n=x.size, text=live.to_base64({"x": x}))
        np.testing.assert_array_equal(ours, x.astype(np.float32))


def text_of(run: Run, body: str, **values):
    return scripts()(
        MAKE + "const text = new LiveText(model);" + body, live=exported(run), **values
    )


# Each option meets a window, and learned and rotary positions meet both.
TEXTS = [(name, "refill") for name in OPTIONS] + [(name, "exact") for name in ("nano", "modern")]


@pytest.mark.parametrize(("run", "window"), TEXTS, indirect=["run"])
def test_greedy_texts_are_those_of_sample_past_the_context(run, window):
    ours = text_of(
        run,
        "text.become(ids); const how = {seed: 1, temperature: 0, window};"
        "for (let i = 0; i < 20; i++) text.next(how);"
        "return text.ids;",
        ids=run.tokenizer.encode(PROMPT[:3]).tolist(), window=window,
    )  # fmt: skip
    theirs = gpt_jax.generate(run, PROMPT[:3], temperature=0.0, max_new_tokens=20, window=window)
    assert run.tokenizer.decode(ours) == theirs
