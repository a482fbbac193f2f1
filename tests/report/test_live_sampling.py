"""Tokens in the page are sampled as `sample` does; what the page says of them is what jax says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from script_engine import scripts
from test_live_model import PROMPT, make_run, text_of

import gpt_jax
from gpt_jax.inference.decoding import Filters, filter_logits

LOGITS = [1.5, -2.0, 0.25, 1.5, 3.0, -0.5, 0.25, 2.0]
FILTERS = [
    {}, {"temperature": 0.5}, {"topK": 1}, {"topK": 3}, {"topK": 99}, {"topP": 0.01},
    {"topP": 0.7}, {"topP": 1.0}, {"temperature": 2.0, "topK": 5, "topP": 0.8},
]  # fmt: skip


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_leave_the_tokens_that_sample_leaves(filters):
    body = "return filtered(Float64Array.from(logits), filters);"
    ours = scripts()(body, logits=LOGITS, filters=filters)
    names = {"temperature": "temperature", "topK": "top_k", "topP": "top_p"}
    values = {"temperature": 1.0, **{names[k]: v for k, v in filters.items()}}
    theirs = jax.nn.softmax(filter_logits(jnp.array([LOGITS]), Filters(**values)))[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_tokens_come_as_often_as_they_are_likely():
    body = """
      const counts = logits.map(() => 0), x = Float64Array.from(logits);
      for (let i = 0; i < n; i++) counts[sample(x, {topK: 4}, uniform(seed, i))]++;
      return [counts, filtered(x, {topK: 4})];
    """
    n = 20_000
    for seed in (0, 1, 2**32 - 1):
        counts, p = scripts()(body, logits=LOGITS, n=n, seed=seed)
        np.testing.assert_allclose(np.array(counts) / n, p, atol=4 / n**0.5)
        assert [c > 0 for c in counts] == [q > 0 for q in p]


def test_the_ends_of_the_numbers_give_tokens_that_may_come():
    body = """
      const x = Float64Array.from(logits), ends = [0.5 / 2 ** 32, 1 - 0.5 / 2 ** 32, 1];
      return ends.map((end) => sample(x, {topK: 2}, end));
    """
    assert scripts()(body, logits=LOGITS) == [4, 7, 7]
    greedy = "return sample(Float64Array.from(logits), {temperature: 0}, 0.9);"
    assert scripts()(greedy, logits=LOGITS) == 4


@pytest.fixture(scope="module")
def run():
    return make_run()


def test_every_token_has_the_probability_that_jax_gives_it(run):
    found = gpt_jax.activations(run, PROMPT)
    p = np.array(jax.nn.softmax(found.logits))
    ids = found.ids.tolist()
    whole = text_of(run, "text.become(ids); return text.judged;", ids=ids)
    body = "text.become(ids.slice(0, 3)); for (const id of ids.slice(3)) text.append(id, 'refill');"
    for judged in (whole, text_of(run, body + "return text.judged;", ids=ids)):
        assert judged[0] is None
        for i, about in enumerate(judged[1:]):
            np.testing.assert_allclose(about["p"], p[i][ids[i + 1]], atol=1e-5)
            order = np.argsort(-p[i], kind="stable").tolist()
            assert [id for id, _ in about["top"]] == order[:10]
            assert about["rank"] == order.index(ids[i + 1]) + 1
            np.testing.assert_allclose([q for _, q in about["top"]], p[i][order[:10]], atol=1e-5)


EDITS = {
    "continued": [1, 2, 3, 4, 5],
    "the same": [1, 2, 3],
    "shorter": [1, 2],
    "one": [1],
    "the middle changed": [1, 7, 3],
    "another": [6, 5],
    "a full context": [1, 2, 3, 4, 5, 6, 7, 8],
    "longer than the context": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 9],
}


@pytest.mark.parametrize("window", ["refill", "exact"])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_text_is_continued_as_if_it_were_new(run, edit, window):
    body = """
      const how = {seed: 3, window};
      const tail = (t) => { t.become(to); for (let i = 0; i < 9; i++) t.next(how); return t.ids; };
      text.become([1, 2, 3]);
      return [tail(text), tail(new LiveText(model)), text.judged];
    """
    edited, new, judged = text_of(run, body, to=EDITS[edit], window=window)
    assert edited == new
    assert judged[0] is None
    assert all(judged[1:])
    assert edited[: len(EDITS[edit])] == EDITS[edit]


def test_a_text_longer_than_the_context_is_judged_from_its_second_token_on(run):
    ids = [i * i % 11 for i in range(30)]
    body = """
      text.become(ids);
      const all = text.judged, changed = [...ids.slice(0, 9), 10, ...ids.slice(10)];
      text.become(changed);
      return [all, text.judged];
    """
    judged, edited = text_of(run, body, ids=ids)
    for each in (judged, edited):
        assert each[0] is None
        assert all(each[1:])
    assert edited[:9] == judged[:9]
    for start, first, last in ((0, 1, 8), (4, 8, 12), (8, 12, 16), (22, 29, 30)):  # of 8 tokens
        logits = gpt_jax.activations(run, run.tokenizer.decode(ids[start : start + 8])).logits
        p = np.array(jax.nn.softmax(logits))
        for i in range(first, last):
            np.testing.assert_allclose(judged[i]["p"], p[i - 1 - start][ids[i]], atol=1e-5)


def test_a_text_that_was_stopped_and_continued_is_that_of_one_go(run):
    body = """
      const how = {seed: 5, window: "refill"}, other = new LiveText(model);
      text.become([1]); other.become([1]);
      for (let i = 0; i < 30; i++) text.next(how);
      for (let i = 0; i < 30; i++) { other.next(how); other.become([...other.ids]); }
      return [text, other].map((t) => [t.ids, t.judged.map((about) => about?.p ?? null)]);
    """
    one_go, stopped = text_of(run, body)
    assert one_go[0] == stopped[0]
    np.testing.assert_allclose(one_go[1][1:], stopped[1][1:], atol=1e-9)
