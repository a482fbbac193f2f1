"""Progress bars and lines on the terminal or in a notebook; else plain lines, each whole."""

from __future__ import annotations

import datetime
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from gpt_jax.moving_lines import Bars, console_options, make_bars, make_cell_output
from gpt_jax.terminal import for_stream, lost_output, visible

LINE_SECONDS = 30
BAR_WIDTH, TEXT_WIDTH = 40, 62  # of a bar, at most, and of what stands beside it


class _Console(Console):
    def print(self, *objects: Any, **how: Any) -> None:
        try:
            super().print(*objects, **how)
        except OSError as error:
            lost_output.append(error)  # of which the command line tells at its end
            self.quiet = True

    def on_broken_pipe(self) -> None:
        self.quiet = True  # the reader went away, as in `| head`; training continues


class Display:
    """Prints a run to standard output; `quiet` prints nothing.

    On a terminal lines are wrapped at words, and the last one may move: one at a time. In a
    notebook likewise, and all of it is one output of the cell.
    """

    def __init__(self, quiet: bool = False):
        self._cell = None if quiet else make_cell_output()
        self._console = _Console(
            quiet=quiet, highlight=False, soft_wrap=True, emoji=False, **console_options(self._cell)
        )
        self._live = not quiet and (self._console.is_terminal or self._cell is not None)
        self._moving: Bars | None = None
        self._headed = False
        self._told: float | None = None  # when `working` last printed a line

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def line(self, text: str = "", indent: int = 0, style: str | None = None) -> None:
        """Prints text; where a terminal is too narrow, its further lines are indented."""
        text = visible(text)
        if self._live:
            text = wrap(text, self._console.width, " " * indent)
        self._console.print(text, style=style, markup=False)

    def note(self, text: str) -> None:
        """Prints a line that asks for attention."""
        self.line(f"note: {text}", indent=6, style="yellow")

    def facts(self, facts: dict[str, str]) -> None:
        """Prints names and what they stand for, in two columns."""
        width = max(map(len, facts))
        for name, text in facts.items():
            self.line(f"{name:<{width}}  {text}", indent=width + 2)

    def command(self, what: str, command: str) -> None:
        """Prints what a command is for, and the command: one that can be copied, however long."""
        if self._live and len(f"{what}: {command}") > self._console.width:
            self.line(f"{what}:")
            lines = wrap_command(command, self._console.width - 4)
            self._console.print(visible("  " + " \\\n    ".join(lines)), markup=False)
        else:
            self.line(f"{what}: {command}")

    def doing(self, what: str) -> None:
        """Shows what is being done and for how long, until something else is shown or `stop`."""
        self.open(
            SpinnerColumn("line"),
            TextColumn("{task.description}, {task.elapsed:.0f} s", markup=False),
            description=visible(what),
            total=None,
        )

    def working(self, what: str) -> None:
        """Shows how far something is; where there is no terminal, a line every LINE_SECONDS."""
        now = time.monotonic()
        self._told = now if self._told is None else self._told
        if self._live and self._moving is not None:
            self.move(description=visible(what))
        elif self._live:
            self.doing(what)
        elif now - self._told > LINE_SECONDS:
            self._told = now
            self.line(what)

    def download(self, done: int, total: int | None) -> None:
        """Shows how much of a download is there; closes the bar at its end."""
        is_new = self._moving is None or self._moving.tasks[0].description != "download"
        if is_new:
            self.open(
                TextColumn("downloading"),
                BarColumn(self.bar_width()),
                DownloadColumn(),
                transient=False,
                description="download",
                total=total,
            )
        self.move(completed=done)
        if done == total:
            self.stop()

    def open(
        self,
        *columns: ProgressColumn,
        transient: bool = True,
        above: Callable[[], RenderableType] | None = None,
        **task: Any,
    ) -> None:
        """Shows a line that moves, in place of the one before; only on a terminal or in a notebook.

        `above` gives what is shown above it, each time anew.
        """
        self.stop()
        if self._live:
            self._moving = make_bars(*columns, console=self._console, transient=transient)
            self._moving.above = above
            self._moving.add_task(**task)
            self._moving.start()

    def move(self, **task: Any) -> None:
        """Changes the line that moves, if there is one."""
        if self._moving is not None:
            self._moving.update(self._moving.task_ids[0], **task)

    def stop(self) -> None:
        """Closes the line that moves, if there is one."""
        if self._moving is not None:
            self._moving.stop()
            self._moving = None

    def bar_width(self) -> int:
        return max(8, min(BAR_WIDTH, self._console.width - TEXT_WIDTH))

    @property
    def is_live(self) -> bool:
        """Whether this is a terminal or a notebook that shows something."""
        return self._live

    def evaluation(self, row: dict[str, Any]) -> None:
        """Prints the row of an evaluation, under a heading the first time."""
        if not self._headed:
            self._headed = True
            self.line(f"{'step':>8} {'train':>9} {'val':>9} {'bits/byte':>10} {'tokens/s':>10}")
        speed, bits = row["tokens_per_second"], row["val_bpb"]
        self.line(
            f"{row['step']:>8} {row['train_loss']:>9.4f} {row['val_loss']:>9.4f} "
            f"{'-' if bits is None else format(bits, '.4f'):>10} "
            f"{'-' if speed is None else format(speed, ',.0f'):>10}"
        )

    def write(self, text: str) -> None:
        """Writes generated text as it comes, without a line break."""
        if self._cell is not None:
            self._cell.write(visible(text))
        elif not self._console.quiet and sys.stdout is not None:
            try:
                sys.stdout.write(for_stream(text, sys.stdout))
                sys.stdout.flush()
            except BrokenPipeError:
                self._console.quiet = True
            except OSError as error:
                lost_output.append(error)
                self._console.quiet = True


class TrainingProgress:
    """What is compiled until the first steps are done, then a bar with the time remaining."""

    def __init__(self, display: Display, steps: int):
        self._display, self._steps = display, steps
        self._has_bar = False

    def doing(self, what: str) -> None:
        """Shows what the first steps wait for; the bar stays."""
        if not self._has_bar:
            self._display.doing(what)

    def update(
        self, step: int, loss: float | None, tokens_per_second: float, seconds_left: float | None
    ) -> None:
        """Moves the bar; the first time it opens it. Without a sound step there is no loss."""
        shown = "no loss" if loss is None else f"loss {loss:.3f}"
        left = "" if seconds_left is None else f"{format_clock(seconds_left)} left"
        values: dict[str, Any] = {
            "completed": step,
            "status": f"{shown}  {tokens_per_second:,.0f} tokens/s  {left}",
        }
        if self._has_bar:
            self._display.move(**values)
            return
        self._has_bar = True
        self._display.open(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(self._display.bar_width()),
            TextColumn("{task.fields[status]}"),
            description="train",
            total=self._steps,
            **values,
        )


class WorkProgress:
    """The bar of a preparation; where there is no terminal, a line every LINE_SECONDS."""

    def __init__(
        self,
        display: Display,
        done: int,
        total: int,
        rows: Callable[[], Sequence[Sequence[str]]] | None = None,
    ):
        """Opens the bar; above it stands a table of `rows`, of which the first is the heading."""
        self._display, self._total = display, total
        self._start = (done, time.monotonic())  # how much was done, and when that was
        self._shown = time.monotonic()
        display.open(
            TextColumn("{task.percentage:>3.0f}%"),
            BarColumn(display.bar_width()),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            description="work",
            total=total,
            completed=done,
            status="starting",
            above=None if rows is None else lambda: _table(rows()),
        )

    def update(self, done: int, speed: str) -> None:
        """Shows that `done` of the total is done, at this speed."""
        if self._display.is_live:
            self._display.move(completed=done, status=speed)
        elif time.monotonic() - self._shown > LINE_SECONDS:
            self._shown = time.monotonic()
            before, start = self._start
            rate = (done - before) / (self._shown - start)
            left = f"{(self._total - done) / rate / 60:,.0f} min left" if rate else ""
            self._display.line(f"{100 * done / self._total:3.0f}%  {speed}  {left}".rstrip())


def _table(rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table


def wrap(text: str, width: int, indent: str = "") -> str:
    """Returns text with its lines broken between words, where they are wider than `width`.

    A word that is wider itself stays whole. All further lines begin with `indent`.
    """
    lines = []
    for line in text.split("\n"):
        lines += textwrap.wrap(
            line,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        ) or [""]
    return "\n".join(lines)


def wrap_command(command: str, width: int) -> list[str]:
    """Returns the lines of a command line, broken between the words of a shell only."""
    lines = [""]
    for word in shlex.split(command):
        longer = f"{lines[-1]} {shlex.quote(word)}".lstrip()
        if len(longer) > width and lines[-1]:
            lines.append(shlex.quote(word))
        else:
            lines[-1] = longer
    return lines


def format_clock(seconds: float) -> str:
    """Returns seconds as H:MM:SS."""
    return str(datetime.timedelta(seconds=round(seconds)))


def format_duration(seconds: float) -> str:
    """Returns seconds in the unit that a reader would choose: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
