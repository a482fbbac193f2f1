"""What a terminal shows: lines broken at words, what is compiled, the time remaining."""

import io
import sys
import time
import types

import pytest
from rich.console import Console

from gpt_jax import moving_lines
from gpt_jax.console import (
    Display,
    TrainingProgress,
    WorkProgress,
    format_clock,
    format_duration,
    wrap,
)


def terminal(width=80):
    """A display on a terminal of that width, and what it prints."""
    out = io.StringIO()
    display = Display()
    display._console = Console(
        file=out, force_terminal=True, width=width, soft_wrap=True, highlight=False,
        _environ={"TERM": "xterm"},
    )  # fmt: skip
    display._live = True
    return display, out


FACTS = {
    "corpus": "oz, 207,799 characters, from /home/with/a/rather/long/path/data/wizard_of_oz.txt",
    "sha256": "5fbceadaf1cbc51bd8bf30e5ebe60ed99d67ebda266120ba3f6379d6ecf106c2",
    "model": "620,873 parameters: 3 layers, 4 heads, 128 wide, context 64, 73 tokens",
}


@pytest.mark.parametrize("width", [80, 160])
def test_no_line_of_a_terminal_breaks_inside_a_word(width):
    display, out = terminal(width)
    display.facts(FACTS)
    display.note("a note that is " + "very " * 30 + "long")
    display.line("the validation loss rises: " + "3.1415, " * 20)
    lines = out.getvalue().replace("\x1b[33m", "").replace("\x1b[0m", "").splitlines()
    assert all(len(line) <= width for line in lines)
    words = " ".join(lines).split()
    assert FACTS["sha256"] in words
    assert "/home/with/a/rather/long/path/data/wizard_of_oz.txt" in words
    if width == 80:
        assert lines[0] == "corpus  oz, 207,799 characters, from"
        assert lines[1] == "        /home/with/a/rather/long/path/data/wizard_of_oz.txt"
        assert any(line.startswith("      very") for line in lines)  # below "note: "
    else:
        assert lines[0] == f"corpus  {FACTS['corpus']}"


def test_a_word_wider_than_the_terminal_stays_whole():
    assert wrap("see /a/path-of/many-folders here", 10, "  ").split("\n") == [
        "see", "  /a/path-of/many-folders", "  here"
    ]  # fmt: skip
    assert wrap("\n  indented\n", 20) == "\n  indented\n"


def test_a_long_command_can_be_copied_from_a_terminal():
    display, out = terminal(60)
    command = "python main.py --config nano --run-dir runs/other --train.steps 5000"
    display.command("10 times the steps", command)
    shown = out.getvalue()
    assert shown.startswith("10 times the steps:\n  python main.py ")
    assert all(len(line) <= 60 for line in shown.splitlines())
    assert " ".join(shown.partition("\n")[2].replace("\\\n", " ").split()) == command


def test_where_there_is_no_terminal_lines_stay_whole(capsys):
    display = Display()
    display.facts(FACTS)
    display.command("10 times the steps", "python main.py " + "--a b " * 30)
    display.doing("compiling the evaluation")
    progress = TrainingProgress(display, 500)
    progress.doing("compiling the training step")
    progress.update(120, 2.345, 25_000, 12.0)
    display.stop()
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"corpus  {FACTS['corpus']}"
    assert len(out.splitlines()) == 4
    assert "\x1b" not in out


def test_until_the_first_steps_are_done_a_terminal_shows_what_is_compiled():
    display, out = terminal()
    progress = TrainingProgress(display, 500)
    progress.doing("compiling the evaluation")
    display._moving.tasks[0].start_time -= 3.2
    display._moving.refresh()
    assert "compiling the evaluation, 3 s" in out.getvalue()
    progress.doing("compiling the training step")
    progress.update(10, 2.345, 25_000, 72.0)
    display._moving.refresh()
    display.stop()
    assert "compiling the training step, 0 s" in out.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_the_bar_shows_step_loss_speed_and_time_left(width):
    display, out = terminal(width)
    progress = TrainingProgress(display, 100_000)
    progress.update(10, 3.0, 125_000, 90_000.0)
    progress.update(12_000, 2.345, 125_000, 72.0)
    progress.doing("compiling the last steps")  # the bar stays
    display._moving.refresh()
    display.stop()
    text = "step 12000/100000 BAR loss 2.345  125,000 tokens/s  0:01:12 left"
    for part in text.split(" BAR "):
        assert part in out.getvalue()
    assert "…" not in out.getvalue()


def test_a_download_takes_the_line_of_what_was_shown_before():
    display, out = terminal()
    display.doing("reading the corpus")
    for done in (0, 500, 1000):
        display.download(done, 1000)
    assert display._moving is None
    assert "downloading" in out.getvalue()


def test_work_without_a_terminal_prints_a_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("gpt_jax.console.time.monotonic", lambda: now[0])
    progress = WorkProgress(Display(), 100, 1000)
    for now[0], done in ((10.0, 200), (40.0, 500), (50.0, 600), (71.0, 700)):
        progress.update(done, "5 tokens/s")
    assert capsys.readouterr().out.splitlines() == [
        " 50%  5 tokens/s  1 min left",
        " 70%  5 tokens/s  1 min left",
    ]


def test_a_table_stands_above_the_bar():
    display, out = terminal(100)
    rows = [("run", "step", "loss"), ("learning_rate=0.001 [bold]", "20/40", "3.125")]
    progress = WorkProgress(display, 0, 80, lambda: rows)
    rows.append(("learning_rate=0.003", "20/40", "2.875"))
    progress.update(40, "0 of 2 runs done")
    display.stop()
    shown = out.getvalue()
    assert "learning_rate=0.001 [bold]" in shown  # as it is: no markup
    assert "learning_rate=0.003" in shown
    assert shown.rindex("2.875") < shown.rindex("0 of 2 runs done")


def test_what_is_done_moves_on_a_terminal_and_is_a_line_now_and_then_without(capsys, monkeypatch):
    display, out = terminal()
    for share in (10, 20):
        display.working(f"learning: {share}%")
        display._moving.refresh()
    display.stop()
    assert "learning: 20%, 0 s" in out.getvalue()
    now = [0.0]
    monkeypatch.setattr("gpt_jax.console.time.monotonic", lambda: now[0])
    display = Display()
    for now[0] in (10.0, 35.0, 41.0, 60.0, 72.0):
        display.working(f"learning: {now[0]:.0f}%")
    assert capsys.readouterr().out.splitlines() == ["learning: 41%", "learning: 72%"]


def test_seconds_are_shown_in_the_unit_that_fits():
    assert [format_duration(s) for s in (4.4, 89, 90, 700, 5400, 12_600, 200_000)] == [
        "4 s", "89 s", "2 min", "12 min", "1.5 h", "3.5 h", "2.3 days"
    ]  # fmt: skip
    assert [format_clock(s) for s in (9.6, 72, 3723)] == ["0:00:10", "0:01:12", "1:02:03"]


@pytest.fixture
def cell(monkeypatch):
    """What a Jupyter kernel shows of a cell: its outputs, each a list of what it showed in turn."""
    outputs: list[list[str]] = []

    class DisplayHandle:
        def display(self, data, *, raw):
            outputs.append([])
            self.output = outputs[-1]
            self.update(data, raw=raw)

        def update(self, data, *, raw):
            assert raw
            self.output.append(data["text/plain"])

    shell = types.SimpleNamespace(kernel="a kernel")
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    display = types.SimpleNamespace(DisplayHandle=DisplayHandle)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a kernel has it, for programs that it starts
    return outputs


def assert_it_shows(states, text):
    """Waits until a cell shows a text: what follows another at once is shown a moment later."""
    limit = time.monotonic() + 30
    while states[-1] != text:
        assert time.monotonic() < limit, states[-1]
        time.sleep(0.001)


def test_a_notebooks_cell_has_one_output_with_a_bar_at_its_end(cell, capsys):
    display = Display()
    display.facts({"corpus": "oz", "model": "nano"})
    progress = TrainingProgress(display, 500)
    progress.doing("compiling the training step")
    progress.update(120, 2.345, 25_000, 12.0)
    display._moving.refresh()
    display.note("a line above the bar")
    display._moving.refresh()
    display.stop()
    display.line("the end")
    (states,) = cell
    assert capsys.readouterr().out == ""
    assert_it_shows(states, "corpus  oz\nmodel   nano\nnote: a line above the bar\nthe end")
    assert any("compiling the training step, 0 s" in text for text in states)
    bar = [text for text in states if "step 120/500" in text]
    assert bar[-1].startswith("corpus  oz\nmodel   nano\nnote: a line above the bar\nstep 120/500")
    assert bar[-1].endswith("loss 2.345  25,000 tokens/s  0:00:12 left")
    assert "compiling" not in bar[-1]
    assert "\x1b" not in "".join(states)


def test_what_moves_in_a_cell_moves_by_itself_until_it_is_stopped(cell, monkeypatch):
    monkeypatch.setattr(moving_lines, "CELL_SECONDS", 0.001)
    display = Display()
    display.doing("compiling")
    display._moving.tasks[0].start_time -= 5
    limit = time.monotonic() + 30
    while "compiling, 5 s" not in cell[0][-1]:
        assert time.monotonic() < limit
        time.sleep(0.001)
    display.stop()
    assert cell[0][-1] == ""
    display.download(5, 10)
    display.download(10, 10)  # what a finished download says stays
    assert cell[0][-1].startswith("downloading ")
    assert cell[0][-1].endswith("10/10 bytes")


def test_text_that_streams_into_a_cell_is_shown_a_few_times_a_second(cell):
    display = Display()
    for _ in range(1000):
        display.write("word ")
    display.line("\x07")
    assert_it_shows(cell[0], 1000 * "word " + "\\x07")
    assert len(cell[0]) < 100


def test_many_lines_in_a_cell_are_shown_a_few_times_a_second(cell):
    """Each time the whole text is sent."""
    display = Display()
    lines = [f"member {n}" for n in range(300)]
    for line in lines:
        display.line(line)
    assert_it_shows(cell[0], "\n".join(lines))
    assert len(cell[0]) < 60


def test_outside_of_a_kernel_and_where_it_is_quiet_a_cell_has_no_output(cell, capsys):
    Display(quiet=True).line("nothing")
    sys.modules["IPython"].get_ipython = lambda: None  # imported, but no kernel
    Display().line("a line")
    assert not cell
    assert capsys.readouterr().out == "a line\n"
