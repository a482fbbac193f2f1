"""The worker answers the newest question only; tokens are shown so that each can be seen."""

import numpy as np
import pytest
from script_engine import scripts
from test_live_model import exported, make_run

import gpt_jax
from gpt_jax.report.live import export_tokenizer
from gpt_jax.tokenizer import PATTERN, BpeTokenizer, CharTokenizer

START = """
  const sent = [], scope = { postMessage: (message) => sent.push(message) };
  startWorker(scope);
  const tell = (job, message) => scope.onmessage({ data: { job, ...message } });
  const finish = () => { while (sent.at(-1).more) tell(sent.at(-1).job, { proceed: true }); };
  const write = { state: 0, ids: [1, 2, 3], count: 300, end: null, seed: 1, window: "refill" };
  tell(0, { load: live });
"""


@pytest.fixture(scope="module")
def run():
    return make_run()


def ask(run, body: str):
    live = exported(run)
    live["states"] = [{"step": 0, "values": live.pop("values")}]
    return scripts()(START + body, live=live)


def test_what_was_written_comes_in_pieces_that_follow_one_another(run):
    sent = ask(run, "tell(1, { write }); finish(); return sent;")
    ids = []
    for message in sent:
        assert message["job"] == 1
        assert message["from"] == len(ids)
        assert len(message["ids"]) == len(message["judged"])
        ids += message["ids"]
        assert message["more"] == (message is not sent[-1])
    assert ids[:3] == [1, 2, 3]
    assert len(ids) == 303


def test_a_stop_or_a_new_question_ends_the_one_before(run):
    body = """
      tell(1, { write: { ...write, count: 1e9 } });
      tell(2, { stop: true });
      tell(1, { proceed: true });
      const n = sent.length;
      tell(3, { write: { ...write, count: 1e9 } });
      tell(4, { write: { ...write, count: 2 } });
      tell(3, { proceed: true });
      return [n, sent.map((m) => m.job), sent.at(-1).more];
    """
    n, jobs, more = ask(run, body)
    assert n == 1
    assert jobs == [1, 3, 4]
    assert not more


def test_a_text_ends_with_the_token_that_ends_texts(run):
    sent = ask(run, "tell(1, { write: { ...write, count: 5000, end: 4 } }); finish(); return sent;")
    ids = [i for message in sent for i in message["ids"]]
    assert ids.index(4) == len(ids) - 1
    assert not sent[-1]["more"]


@pytest.mark.parametrize(("picked", "start"), [(0, 0), (1, 0), (6, 2), (9, 3), (10, 3)])
def test_a_look_is_at_the_tokens_around_the_one_that_is_chosen(run, picked, start):
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    body = "tell(7, { look: { state: 0, ids: %s, picked: %s, layer: 1 } }); return sent;"
    (found,) = ask(run, body % (ids, picked))
    shown = run.tokenizer.decode(ids[start : start + 8])
    theirs = gpt_jax.activations(run, shown)
    assert (found["start"], found["T"]) == (start, 8)
    np.testing.assert_allclose(
        np.reshape(found["attention"], theirs.attention[1].shape), theirs.attention[1], atol=1e-5
    )
    assert len(found["lens"]) == run.config.model.n_layer + 1
    if picked:
        logits = theirs.logits[picked - 1 - start]
        p = np.exp(logits - logits.max())
        np.testing.assert_allclose(found["lens"][-1]["p"], (p / p.sum())[ids[picked]], atol=1e-5)


def test_an_error_is_told(run):
    (message,) = ask(run, "tell(5, { write: { ...write, state: 3 } }); return sent;")
    assert message["job"] == 5
    assert "Error" in message["error"]


SHOWN = {
    "a": "a", " ": "␣", "\n": "⏎", "\x1b": "␛", "\t": "␉", "\x00": "␀", "\x7f": "‹U+007F›",
    "\x85": "‹U+0085›", "\u200f": "‹U+200F›", "\u202e": "‹U+202E›", "\u2028": "‹U+2028›",
    "\ufeff": "‹U+FEFF›", "\u0301": "◌\u0301", "<": "<", "&": "&", "'": "'", "ش": "ش", "𝔘": "𝔘",
}  # fmt: skip


def test_every_token_can_be_seen():
    tokenizer = CharTokenizer.train("".join(SHOWN))
    body = """
      const t = makeTokenizer(file);
      return Object.fromEntries(t.words.map((c, id) => [c, shown(t, id)]));
    """
    assert scripts()(body, file=export_tokenizer(tokenizer)) == SHOWN


def test_parts_of_characters_and_tokens_without_text_can_be_seen():
    tokens = [bytes([b]) for b in range(256)] + ["é".encode(), b" a\xc3", b" the\n"]
    file = export_tokenizer(BpeTokenizer(tokens, PATTERN, {"<|end|>": 300}, vocab_size=302))
    body = "const t = makeTokenizer(file); return ids.map((id) => shown(t, id));"
    ours = scripts()(body, file=file, ids=[0xC3, 256, 257, 258, 300, 301])
    assert ours == ["‹c3›", "é", "‹20 61 c3›", "␣the⏎", "<|end|>", "‹301›"]
