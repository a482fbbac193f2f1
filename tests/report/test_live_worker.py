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


LOOK_AT_ALL = """
  tell(7, { write: { ...write, ids, count: 30 - ids.length, window } });
  finish();
  const messages = sent.splice(0), all = (name) => messages.flatMap((each) => each[name]);
  for (let i = 0; i < 30; i++) tell(7, { look: { state: 0, picked: i, layer: 1 } });
  return [all("ids"), all("judged"), sent];
"""


@pytest.mark.parametrize(("how", "n"), [("typed", 30), ("refill", 3), ("exact", 3)])
def test_a_look_is_in_the_contexts_in_which_the_text_had_the_token(run, how, n):
    """Of 30 tokens where 8 are seen: after the last block it has the probability that is shown."""
    given = [i * i % 11 for i in range(n)]
    ids, judged, looks = ask(run, f"const ids = {given}, window = '{how}';" + LOOK_AT_ALL)
    assert len(ids) == len(judged) == len(looks) == 30
    for picked, (about, found) in enumerate(zip(judged, looks, strict=True)):
        assert len(found["lens"]) == run.config.model.n_layer + 1
        assert found["picked"] == picked
        assert found["start"] <= picked < found["start"] + found["T"] <= 30
        if picked:
            np.testing.assert_allclose(found["lens"][-1]["p"], about["p"], rtol=1e-9)
            assert found["lens"][-1]["rank"] == about["rank"]
    contexts = {  # in which the model reads on from each token
        "typed": [0] * 7 + [4] * 4 + [8] * 4 + [12] * 4 + [16] * 4 + [20] * 4 + [22] * 3,
        "refill": [0] * 8 + [5] * 5 + [10] * 5 + [15] * 5 + [20] * 5 + [25] * 2,
        "exact": [0] * 8 + list(range(1, 23)),
    }
    assert [found["start"] for found in looks] == contexts[how]
    for picked in (0, 5, 8, 19, 29):
        found = looks[picked]
        shown = run.tokenizer.decode(ids[found["start"] : found["start"] + found["T"]])
        theirs = gpt_jax.activations(run, shown).attention[1]
        ours = np.reshape(found["attention"], theirs.shape)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


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
