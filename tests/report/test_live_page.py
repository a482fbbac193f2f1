"""The model in a real browser: a run's own page writes, is stopped and edited, and shows how."""

import itertools
import re
import shutil

import jax
import numpy as np
import pytest

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
from gpt_jax.report.live import round_params
from gpt_jax.report.page import make_report
from gpt_jax.run.load import load_run

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="needs chromium")]
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


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


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
        sync_api.expect(status).to_have_text(re.compile(pattern), timeout=60_000)
        sync_api.expect(self.button("Stop")).to_be_disabled(timeout=60_000)

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


def test_greedy_text_is_that_of_sample_with_refill(opened, run_dir):
    run = load_run(run_dir)
    rounded = run.__class__(**{**vars(run), "params": round_params(run.params)})
    theirs = gpt_jax.generate(rounded, "the w", temperature=0.0, max_new_tokens=40, window="refill")
    opened.number("temperature").fill("0")
    opened.number("tokens").fill("40")
    opened.box.fill("the w")
    opened.wait("^5 tokens")
    opened.button("Continue").click()
    opened.wait("^40 tokens, .* a second, at step 12")
    assert opened.box.input_value() == theirs


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
    sync_api.expect(live.locator(".attention")).to_contain_text("(token 6) it looks at")
    sync_api.expect(live).to_contain_text("The prediction of token 6, i, read off after each")
    assert live.locator(".depth").count() == MODEL.n_layer + 1
    opened.page.locator(".tokens").press("ArrowRight")
    sync_api.expect(live.locator(".attention")).to_contain_text("(token 7) it looks at")
    texts = set()
    for layer, head in itertools.product("12", "1234"):
        live.get_by_label("layer").select_option(label=layer)
        live.get_by_label("head").select_option(label=head)
        opened.page.wait_for_timeout(100)
        texts.add(live.locator(".attention p").first.text_content())
    assert len(texts) == 8


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
def test_the_page_fits_its_width(browser, path, width, scheme, tmp_path):
    opened = Opened(browser, path, width, scheme)
    opened.button("Continue").click()
    opened.wait("^30 tokens, ")
    opened.open_views()
    opened.page.locator(".depth").first.wait_for()
    assert opened.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    opened.page.close()
    assert not opened.wrong
