"""The model in a real browser: a run's own page writes, is stopped and edited, and shows how."""

import dataclasses
import itertools
import re

import jax
import numpy as np
import pytest
from test_live_model import OPTIONS, PROMPT, exported, make_run
from test_live_tokenizer import TEXT, TOKENIZERS, bpe

import gpt_jax
from gpt_jax.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
)
from gpt_jax.model import forward
from gpt_jax.report import live as live_models
from gpt_jax.report.live import export_tokenizer, round_params
from gpt_jax.report.page import make_report
from gpt_jax.run.load import load_run

try:
    from playwright.sync_api import expect
except ImportError:  # `browser` skips the tests, or fails them
    expect = None
pytestmark = pytest.mark.slow
HOSTILE = "<script>alert('x')</script>\x1b[31m\u202e\u200f\"&<b>"
MODEL = ModelConfig(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, block_size=16, positions="rotary",
                    qk_norm=True, norm="rms", activation="swiglu", tied=True)  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, finished_run):
    folder = tmp_path_factory.mktemp("live")
    book = folder / "book.txt"
    book.write_text((HOSTILE + "\nthe wizard of oz said so\n") * 60, encoding="utf-8", newline="")
    config = Config(
        run_dir=str(folder / "run"),
        model=MODEL,
        data=DataConfig(corpus=str(book)),
        train=TrainConfig(batch_size=8, steps=12, log_interval=2, eval_interval=4, eval_batches=2,
                          checkpoint_interval=4, keep_interval=4),
        optim=OptimConfig(learning_rate=0.03),
        mesh=MeshConfig(data=1),
        sample=SampleConfig(max_new_tokens=30),  # the prompt: the first line of validation text
    )  # fmt: skip
    return finished_run(config).run_dir


@pytest.fixture(scope="module")
def path(run_dir, tmp_path_factory):
    return make_report(run_dir, tmp_path_factory.mktemp("page") / "page.html").path


class Opened:
    """A page in a browser of some width; `wrong` are its errors, dialogs and requests."""

    def __init__(self, browser, path, width=1280, scheme="light"):
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda line: self.wrong.append(line.text))
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        self.page.on("request", self._on_request)
        self.page.goto(path.as_uri())
        self.box = self.page.locator("#live textarea")
        self.wait(r"^\d+ tokens, at step")

    def _on_request(self, request):
        if not request.url.startswith(("file:", "blob:")):
            self.wrong.append(request.url)

    def wait(self, pattern: str):
        """Waits until the model is done, and its line says this."""
        status = self.page.locator("#live .writing output")
        expect(status).to_have_text(re.compile(pattern), timeout=60_000)
        expect(self.button("Stop")).to_be_disabled(timeout=60_000)

    def button(self, name: str):
        return self.page.get_by_role("button", name=name, exact=True)

    def number(self, name: str):
        return self.page.get_by_role("spinbutton", name=name, exact=True)

    def tokens(self) -> list[str]:
        return self.page.locator(".tokens .token").all_text_contents()

    def open_views(self):
        closed = self.page.locator("#live .view:not([open]) > summary")
        while closed.count():
            closed.first.click()


@pytest.fixture
def opened(browser, path):
    opened = Opened(browser, path)
    yield opened
    opened.page.close()
    assert not opened.wrong


def test_logits_in_the_browser_are_jaxs(opened, run_dir):
    run = load_run(run_dir)
    ids = run.tokenizer.encode("the wizard <b> o")
    ours = opened.page.evaluate(
        """ids => {
          const { live } = JSON.parse(document.getElementById("report-data").textContent);
          const parameters = decodeParameters(live.arrays, live.states.at(-1).values);
          const model = new Model(live.model, parameters);
          return Array.from(model.forward(model.newCache(), ids));
        }""",
        ids.tolist(),
    )
    logits = jax.jit(forward, static_argnums=0)
    theirs = np.asarray(logits(run.config.model, round_params(run.params), ids[None])[0])
    np.testing.assert_allclose(np.reshape(ours, theirs.shape), theirs, atol=1e-4)


SESSIONS = """
  (sessions) => Promise.all(sessions.map(({ live, text }) => new Promise((resolve, reject) => {
    const tokenizer = makeTokenizer(live.tokenizer), { ids } = tokenizer.encode(text);
    const model = new Model(live.model, decodeParameters(live.arrays, live.states[0].values));
    const logits = Array.from(model.forward(model.newCache(), ids)), worker = makeWorker();
    const written = [];
    worker.onmessage = ({ data: { error, from, ids: more_ids, more } }) => {
      if (error) return reject(error);
      written.splice(from, Infinity, ...more_ids);
      if (more) return worker.postMessage({ job: 1, proceed: true });
      worker.terminate();
      resolve({ ids, logits, text: decode(tokenizer, written) });
    };
    worker.postMessage({ load: live, job: 0 });
    const start = tokenizer.encode(text.slice(0, 3)).ids;
    worker.postMessage({ job: 1, write: { state: 0, ids: start, count: 20, end: null, seed: 0,
      window: "refill", temperature: 0, topK: null, topP: null } });
  })))
"""


def test_every_option_and_byte_pairs_are_jaxs_in_the_browser(opened):
    """nano's own options are the first; each writes in a worker of its own, text in and out."""
    pairs = bpe(merges=60)
    runs = [(make_run(**options), PROMPT) for options in OPTIONS.values()]
    of_pairs = make_run(vocab_size=pairs.vocab_size, block_size=32)
    runs.append((dataclasses.replace(of_pairs, tokenizer=pairs), " größer naïve 中文"))
    sessions = []
    for run, text in runs:
        live = {**exported(run), "tokenizer": export_tokenizer(run.tokenizer)}
        live["states"] = [{"step": 0, "values": live.pop("values")}]
        sessions.append({"live": live, "text": text})
    answers = opened.page.evaluate(SESSIONS, sessions)
    for (run, text), found in zip(runs, answers, strict=True):
        theirs = gpt_jax.activations(run, text)
        assert found["ids"] == theirs.ids.tolist()
        ours = np.reshape(found["logits"], theirs.logits.shape)
        np.testing.assert_allclose(ours, theirs.logits, atol=1e-4, rtol=0)
        if run is runs[0][0] or run is runs[-1][0]:  # to compile for each option takes long
            how = {"temperature": 0.0, "max_new_tokens": 20, "window": "refill"}
            assert found["text"] == gpt_jax.generate(run, text[:3], **how)


def test_tokenizers_are_pythons_in_the_browser(opened):
    """Its own regular expressions, atob, TextEncoder and TextDecoder."""
    body = """({ file, text, ids }) => {
      const t = makeTokenizer(file);
      return [t.encode(text).ids, decode(t, ids)];
    }"""
    for make in TOKENIZERS.values():
        tokenizer = make()
        ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 300).tolist()
        values = {"file": export_tokenizer(tokenizer), "text": TEXT, "ids": ids}
        encoded, decoded = opened.page.evaluate(body, values)
        assert encoded == tokenizer.encode(TEXT).tolist()
        assert decoded == tokenizer.decode(ids)


@pytest.mark.parametrize("window", ["refill", "exact"])
def test_greedy_text_is_that_of_sample(opened, run_dir, window):
    run = load_run(run_dir)
    rounded = run.__class__(**{**vars(run), "params": round_params(run.params)})
    theirs = gpt_jax.generate(rounded, "the w", temperature=0.0, max_new_tokens=40, window=window)
    opened.page.locator("#way").select_option(window)
    opened.number("temperature").fill("0")
    opened.number("tokens").fill("40")
    opened.box.fill("the w")
    opened.wait("^5 tokens")
    opened.button("Continue").click()
    opened.wait("^40 tokens, .* a second, at step 12")
    assert opened.box.input_value() == theirs
    opened.open_views()
    said = opened.page.locator("#choice p"), opened.page.locator(".depth .hint").last
    for i in (44, 31, 17, 16, 3):  # of which most are past the context: both say the same of it
        opened.page.locator(".tokens .token").nth(i).click()
        expect(opened.page.locator("#lens")).to_contain_text(f"The prediction of token {i + 1},")
        chosen, after_last_block = (each.inner_text() for each in said)
        assert re.search(r"had (.*) of \d+\.", chosen)[1] == after_last_block.split(": ", 1)[1]


def test_nothing_of_the_run_or_the_reader_is_markup(opened):
    assert opened.box.input_value() == HOSTILE
    opened.open_views()
    opened.box.fill(f"{HOSTILE}\né<img src=x onerror=alert(1)>")
    opened.wait(r"Left out, as the model has no token for it: é \(U\+00E9\), g \(U\+0067\), =")
    live = opened.page.locator("#live")
    assert live.locator("script, img, b").count() == 0
    assert opened.tokens()[: len("<script>alert(")] == list("<script>alert(")
    assert {"␛", "‹U+202E›", "‹U+200F›", "⏎\n"} <= set(opened.tokens())


def test_a_text_is_stopped_continued_edited_and_given_another_token(opened):
    opened.number("tokens").fill("5000")
    opened.button("Continue").click()
    opened.button("Stop").click()
    n = len(opened.tokens())
    assert opened.button("Stop").is_disabled()
    assert len(opened.tokens()) == n < 5000
    opened.number("tokens").fill("30")
    opened.button("Continue").click()
    opened.wait("^30 tokens, ")
    assert len(opened.tokens()) == n + 30
    text = opened.box.input_value()
    assert text.startswith(HOSTILE)
    opened.box.fill("the" + text[3:40])
    opened.wait("^40 tokens")
    assert "".join(opened.tokens()[:3]) == "the"
    opened.page.locator(".tokens .token").nth(10).click()
    other = opened.page.locator("#live button.bar:not(.is-it)").first
    name = other.locator(".token-text").text_content()
    other.click()
    opened.wait("^29 tokens, ")
    assert len(opened.tokens()) == 40
    assert opened.tokens()[10].strip("\n") == name.replace("␣", " ")
    opened.button("Back to the prompt").click()
    opened.wait("^11 tokens")


def test_the_views_show_what_is_chosen_by_mouse_and_keyboard(opened):
    opened.open_views()
    opened.box.fill("the wizard of oz")
    opened.wait("^16 tokens")
    opened.page.locator(".tokens .token").nth(5).click()
    live = opened.page.locator("#live")
    expect(live.locator(".attention")).to_contain_text("(token 6) it looks at")
    expect(live).to_contain_text("The prediction of token 6, i, read off after each")
    assert live.locator(".depth").count() == MODEL.n_layer + 1
    assert live.locator(".matrix rect:not(.outline)").count() == 16 * 17 / 2
    assert live.locator(".lines text").count() == 2 * 16  # who looks, and at whom
    assert live.locator(".lines .strong").all_text_contents() == ["i"]
    assert 16 <= live.locator(".lines line").count() <= 16 * 17 / 2
    shares = live.locator(".matrix rect:not(.outline)").evaluate_all(
        "all => all.filter((each) => each.getAttribute('y') == 5)"
        ".map((each) => Number(each.getAttribute('fill-opacity')))"
    )
    assert len(shares) == 6
    assert 1 <= sum(shares) < 1 + 6 * 0.04  # a row is of shares, the least at least seen
    outline = live.locator(".matrix .outline")
    assert [outline.get_attribute(name) for name in ("y", "width")] == ["5", "6"]
    opened.page.locator(".tokens").press("ArrowRight")
    expect(outline).to_have_attribute("y", "6")
    expect(live.locator(".attention")).to_contain_text("(token 7) it looks at")
    live.locator(".lines text").first.click()  # the first token
    expect(live.locator(".attention")).to_contain_text("(token 1) it looks at")
    texts = set()
    for layer, head in itertools.product("12", "1234"):
        live.get_by_label("layer").select_option(label=layer)
        live.get_by_label("head").select_option(label=head)
        opened.page.wait_for_timeout(100)
        texts.add(live.locator(".attention p").first.text_content())
    assert len(texts) == 8


def test_the_focus_stays_where_a_key_was_pressed(opened):
    opened.box.fill("the wizard of oz")
    opened.wait("^16 tokens")
    other = opened.page.locator("#choice button.bar:not(.is-it)").first
    name = other.locator(".token-text").text_content()
    other.press("Enter")
    taken = opened.page.locator("#choice button.is-it")
    expect(taken.locator(".token-text")).to_have_text(name)
    expect(taken).to_be_focused()
    opened.number("tokens").fill("5000")
    opened.button("Continue").press("Enter")
    opened.button("Stop").press("Enter")
    expect(opened.button("Stop")).to_be_disabled()
    expect(opened.button("Continue")).to_be_focused()


def test_a_number_out_of_its_bounds_is_seen_to_change(opened):
    opened.box.fill("the wizard")
    opened.wait("^10 tokens")
    for given, used in (("0", "1"), ("2.6", "3"), ("", "300"), ("6000", "5000")):
        opened.number("tokens").fill(given)
        opened.number("temperature").fill("11")
        opened.number("top-p").fill("2")
        opened.number("top-k").fill("0")
        opened.button("Continue").click()
        assert opened.number("tokens").input_value() == used
        if used != "5000":
            opened.wait(f"^{used} tokens, ")
    opened.button("Stop").click()
    values = [opened.number(name).input_value() for name in ("temperature", "top-p", "top-k")]
    assert values == ["10", "1", "1"]


def test_an_unknown_character_is_named_as_long_as_the_text_has_it(opened):
    opened.box.fill("the é")
    opened.wait("^Left out, .*: é .*4 tokens, at step 12$")
    opened.button("Continue").click()
    opened.wait("^30 tokens, ")
    assert "é" not in opened.box.input_value()
    opened.button("Back to the prompt").click()
    opened.wait("^Left out, .*: é .*4 tokens, at step 12$")
    assert opened.box.input_value() == "the é"
    opened.box.fill("the ")
    opened.wait("^4 tokens")


def test_a_page_of_one_state_does_not_speak_of_a_slider(browser, run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(live_models, "MAX_STATES", 1)
    opened = Opened(browser, make_report(run_dir, tmp_path / "p.html", measure=False).path)
    opened.open_views()
    view = opened.page.locator("#training")
    assert "slider" not in view.inner_text()
    assert not opened.page.get_by_role("slider").count()
    assert "the parameters of step 12, and there are 4 such states." in view.inner_text()
    assert "--train.keep-interval" not in view.inner_text()  # which would not help
    opened.page.close()
    assert not opened.wrong


def test_what_is_chosen_is_printed_on_white(opened):
    opened.button("light / dark").click()
    opened.page.emulate_media(media="print")
    style = "getComputedStyle(document.body)"
    colours = opened.page.evaluate(f"[{style}.backgroundColor, {style}.color]")
    assert colours == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    assert opened.page.locator("#choice button.bar:visible").count() == 10
    assert opened.page.locator("#about").is_visible()
    assert not opened.button("Stop").count()


def test_the_slider_continues_the_prompt_with_other_parameters(opened):
    opened.open_views()
    opened.box.fill("the wizard")
    slider = opened.page.get_by_role("slider")
    texts = []
    for state, step in enumerate((0, 4, 8, 12)):
        slider.fill(str(state))
        opened.wait(f"^30 tokens, .* at step {step}$")
        texts.append(opened.box.input_value())
    assert all(text.startswith("the wizard") for text in texts)
    assert len(set(texts)) == 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_the_page_fits_its_width(browser, path, width, scheme):
    opened = Opened(browser, path, width, scheme)
    opened.button("Continue").click()
    opened.wait("^30 tokens, ")
    opened.open_views()
    opened.page.locator(".depth").first.wait_for()
    assert opened.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    opened.page.close()
    assert not opened.wrong
