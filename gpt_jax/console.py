"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 30


class _Console(Console):
    def on_broken_pipe(self) -> None:
        self.quiet = True  # the reader went away, as in `| head`; training goes on


class Display:
    """Prints a run to standard output; `quiet` prints nothing."""

    def __init__(self, quiet: bool = False):
        self._console = _Console(quiet=quiet, highlight=False, soft_wrap=True, emoji=False)
        self._live = self._console.is_terminal and not quiet
        self._bar: Progress | None = None
        self._headed = False
        self._work_total = 1
        self._work_begun = (0, 0.0)  # how much was done, and when that was
        self._work_shown = 0.0

    def line(self, text: str = "") -> None:
        """Prints one line as it is."""
        self._console.print(text, markup=False)

    def note(self, text: str) -> None:
        """Prints a line that asks for attention."""
        self._console.print(f"note: {text}", style="yellow", markup=False)

    def facts(self, facts: dict[str, str]) -> None:
        """Prints names and what they stand for, in two columns."""
        width = max(map(len, facts))
        for name, text in facts.items():
            self.line(f"{name:<{width}}  {text}")

    def download(self, done: int, total: int | None) -> None:
        """Shows how much of a download is there; closes the bar at its end."""
        if self._live and self._bar is None:
            self._bar = Progress(
                TextColumn("downloading"), BarColumn(), DownloadColumn(), console=self._console
            )
            self._bar.add_task("download", total=total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)
        if done == total:
            self.stop()

    def start(self, step: int, steps: int) -> None:
        """Opens the training bar."""
        self._open_bar("step {task.completed:.0f}/{task.total:.0f}", step, steps, "compiling")

    def _open_bar(self, place: str, done: int, total: int, status: str) -> None:
        if self._live:
            self._bar = Progress(
                TextColumn(place),
                BarColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
                transient=True,
            )
            self._bar.add_task(place, total=total, completed=done, status=status)
            self._bar.start()

    def progress(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Moves the training bar."""
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0],
                completed=step,
                status=f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s",
            )

    def start_work(self, done: int, total: int) -> None:
        """Opens the bar of a preparation, for `work`."""
        self._work_total, self._work_begun = total, (done, time.monotonic())
        self._work_shown = time.monotonic()
        self._open_bar("{task.percentage:>3.0f}%", done, total, "starting")

    def work(self, done: int, speed: str) -> None:
        """Moves the bar; where there is no terminal, a line every LINE_SECONDS."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, status=speed)
        elif time.monotonic() - self._work_shown > LINE_SECONDS:
            self._work_shown = time.monotonic()
            before, begun = self._work_begun
            rate = (done - before) / (self._work_shown - begun)
            left = f"{(self._work_total - done) / rate / 60:,.0f} min left" if rate else ""
            self.line(f"{100 * done / self._work_total:3.0f}%  {speed}  {left}".rstrip())

    def evaluation(self, row: dict[str, Any]) -> None:
        """Prints the row of an evaluation, under a heading the first time."""
        if not self._headed:
            self._headed = True
            self.line(f"{'step':>8} {'train':>9} {'val':>9} {'bits/byte':>10} {'tokens/s':>10}")
        speed = row["tokens_per_second"]
        self.line(
            f"{row['step']:>8} {row['train_loss']:>9.4f} {row['val_loss']:>9.4f} "
            f"{row['val_bpb']:>10.4f} {'-' if speed is None else format(speed, ',.0f'):>10}"
        )

    def stop(self) -> None:
        """Closes a bar that is open."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def write(self, text: str) -> None:
        """Writes text as it comes, without a line break."""
        if not self._console.quiet:
            try:
                sys.stdout.write(text)
                sys.stdout.flush()
            except BrokenPipeError:
                self._console.quiet = True
