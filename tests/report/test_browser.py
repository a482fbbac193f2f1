"""The page in a headless Chromium: it draws, answers mouse and keyboard, and obeys no run.

Skipped where there is no browser; `.ci/run` installs one, and then they are not.
"""

import pytest
from fake_runs import write_run, write_side, write_sweep

import gpt_jax
from gpt_jax.report import page as pages

pytestmark = pytest.mark.slow
OBEYED = "document.title='obeyed'"
HOSTILE = f'</script><script>{OBEYED}</script><img src=x onerror="{OBEYED}">'
HOSTILE += "\x1b[31m\u202eabc' \""


@pytest.fixture
def opened(browser, monkeypatch):
    """Returns opened(path, ...): the page in the browser; it fails on errors and requests."""
    monkeypatch.setattr(pages, "make_live_model", lambda *args, **options: {"reason": "none here"})
    contexts, wrong = [], []

    def open_page(path, width=1280, scheme="light"):
        contexts.append(
            browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        )
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: wrong.append(asked.url))
        page.goto(path.absolute().as_uri())
        wrong.remove(path.absolute().as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def sweep_page(tmp_path):
    rates = 1e-4, 3e-4, 1e-3
    members = [
        ({"optim.learning_rate": rate}, seed, 2 - 100 * rate + seed / 100)
        for rate in rates
        for seed in range(3)
    ]
    return gpt_jax.make_report(write_sweep(tmp_path / "sweep", members), tmp_path / "s.html").path


@pytest.mark.parametrize("width", [390, 1280, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_every_screen_in_both_colours(width, scheme, opened, sweep_page):
    page = opened(sweep_page, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    charts = page.locator("figure:visible")
    assert charts.count() == 5  # the losses are one; each of them has a line
    assert all(charts.nth(i).locator("path.line").count() for i in range(5))
    titles = charts.locator("figcaption").all_text_contents()
    assert titles[1:] == ["bits per byte of the validation text", "learning rate", "gradient norm",
                          "tokens per second"]  # fmt: skip
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    page.get_by_role("button", name="light / dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper
    assert page.locator("figure:visible path.band").count() > 3
    dashes = page.locator("path.line[stroke-dasharray='6 4']")
    assert dashes.count() >= 3  # training losses are told from validation without colour
    shapes = page.locator(".c0 > .marker, .c1 > .marker, .c2 > .marker")
    assert len(set(shapes.evaluate_all("all => all.map(each => each.getAttribute('d'))"))) == 3


def test_mouse_and_keyboard_read_and_zoom(opened, sweep_page):
    page = opened(sweep_page)
    chart, tip = page.locator("svg.chart").first, page.locator(".tip").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for x in range(-30, 40, 10):
        page.mouse.move(middle[0] + x, middle[1])
        assert tip.inner_text().startswith(("200 steps", "300 steps"))  # of the values below
    page.mouse.move(*middle)
    assert "learning-rate=0.0001: validation" in tip.inner_text()
    assert "±" in tip.inner_text()
    ticks = lambda: chart.locator("text").all_text_contents()
    whole = ticks()
    page.mouse.down()
    page.mouse.move(middle[0] + 200, middle[1], steps=4)
    page.mouse.up()
    assert ticks() != whole
    page.mouse.dblclick(*middle)
    assert ticks() == whole
    chart.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "200 steps" in tip.inner_text()
    page.keyboard.press("+")
    assert ticks() != whole
    page.keyboard.press("0")
    assert ticks() == whole
    page.get_by_label("tokens", exact=True).check()
    assert "1M" in "".join(ticks())  # 500 steps of 2,048 tokens
    lines = lambda: page.locator("svg.chart").first.locator("path.line").count()
    before = lines()
    page.get_by_role("button", name="each run").click()
    assert lines() == before + 18  # of nine runs, two losses each
    page.get_by_role("button", name="optim.learning-rate=0.0003").click()
    assert lines() == before - 2 + 12
    chart.hover()
    assert tip.locator("svg").count() == 4  # of means, not of each run
    page.locator("svg.chart").nth(3).hover()
    assert "1" in page.locator(".tip").nth(3).locator("b").first.inner_text()  # gradient norm


def test_a_chart_says_where_values_of_other_steps_are_and_how_many_lines_it_leaves_out(
    opened, tmp_path
):
    for i in range(14):
        run_dir = write_run(tmp_path / f"r{i}")
        if i == 1:  # which was evaluated at other steps
            file = run_dir / "metrics.jsonl"
            file.write_text(file.read_text().replace('"step": 300', '"step": 320'))
    names = [tmp_path / f"r{i}" for i in range(14)]
    page = opened(gpt_jax.make_report(names, tmp_path / "p.html").path)
    chart, tip = page.locator("svg.chart").first, page.locator(".tip").first
    chart.focus()
    for _ in range(50):
        page.keyboard.press("ArrowRight")
        if "300 steps" in tip.inner_text():
            break
    assert "r0: validation" in tip.inner_text()
    assert "r1: validation (at 320)" in tip.inner_text()
    assert tip.locator("svg").count() == 12
    assert tip.inner_text().endswith("and 2 more")
    assert "are not compared with one another" in page.locator("#verdicts").inner_text()


def test_a_run_is_never_obeyed(opened, tmp_path):
    settings = {"sample.prompt": HOSTILE}
    run_dir = write_run(tmp_path / HOSTILE.replace("/", "_"), corpus={"name": HOSTILE},
                        settings=settings)  # fmt: skip
    (run_dir / "samples.txt").write_text(f"=== step 500, prompt 'x', corpus y ===\n{HOSTILE}\n\n")
    page = opened(gpt_jax.make_report(run_dir, tmp_path / "p.html").path)
    assert page.title() != "obeyed"
    assert not page.locator("img").count()
    sample = page.locator("pre").first.inner_text()
    assert sample == HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")


def test_it_prints_and_works_in_the_frame_of_a_notebook(opened, tmp_path):
    write_side(tmp_path / "a", [2.0, 2.1])
    write_side(tmp_path / "b", [1.9, 2.0])
    made = gpt_jax.make_report([tmp_path / "a-*", tmp_path / "b-*"], tmp_path / "p.html")
    page = opened(made.path)
    page.get_by_role("button", name="light / dark").click()
    page.emulate_media(media="print")
    style = "getComputedStyle(document.body)"
    colours = page.evaluate(f"[{style}.backgroundColor, {style}.color]")
    assert colours == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]  # though the button was set to dark
    assert not page.locator("button:visible").count()
    assert page.get_by_text("Lines are means over seeds").is_visible()
    assert len(page.pdf()) > 10_000
    frame = tmp_path / "frame.html"
    frame.write_text(f"<!doctype html><meta charset=utf-8>{made._repr_html_()}", "utf-8")
    inside = opened(frame).frame_locator("iframe")
    assert inside.locator("figure:visible").first.locator("path.line").count() == 4
