"""Lines that change while one looks: a bar on a terminal, or at the end of a notebook's output.

A Jupyter kernel can replace an output that it has shown. So what is printed in a cell is one output
(`CellOutput`), lines and bar together. Imports nothing of the package; `console.py` uses it.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn

CELL_COLUMNS = 100
CELL_SECONDS = 0.25  # between two states of a bar in a cell
CHARACTERS_PER_SECOND = 200_000  # that replace an output: a long one changes less often


class Bars(Progress):
    """A bar, and what stands above it."""

    above: Callable[[], RenderableType] | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.above is not None:
            yield self.above()
        yield from super().get_renderables()


class CellOutput(io.StringIO):
    """A text stream that is shown as one output of a cell, with a text at its end that moves."""

    def __init__(self, show: Callable[[str], None]):
        """`show` shows a text in place of what it showed before."""
        super().__init__()
        self._show, self._shown, self._at = show, "", -CELL_SECONDS
        self._moving, self._lock = "", threading.RLock()  # a signal may come while it is held
        self._later: threading.Timer | None = None

    @property
    def seconds(self) -> float:
        """How long to wait between two changes of what moves."""
        return max(CELL_SECONDS, len(self._shown) / CHARACTERS_PER_SECOND)

    def write(self, text: str) -> int:
        """Adds text, and shows it as `flush` does."""
        with self._lock:
            n = super().write(text)
            self.flush()
        return n

    def flush(self) -> None:
        """Shows what is new; a moment later where something was shown just before.

        rich asks after each line, and each time the whole text is sent.
        """
        with self._lock:
            wait = self._at + self.seconds - time.monotonic()
            if wait <= 0:
                self.show_all()
            elif self._later is None:
                self._later = threading.Timer(wait, self.show_all)
                self._later.daemon = True
                self._later.start()

    def show_all(self) -> None:
        """Shows what is new."""
        with self._lock:
            self._later = None
            text = (self.getvalue() + self._moving).rstrip("\n")
            if text != self._shown:
                self._shown, self._at = text, time.monotonic()
                self._show(text)

    def move(self, text: str) -> None:
        """Shows another text at the end."""
        with self._lock:
            self._moving = text
            self.show_all()

    def settle(self, text: str) -> None:
        """Adds a text in place of what moved."""
        with self._lock:
            self._moving = ""
            super().write(text)
            self.show_all()


class CellBars(Bars):
    """Bars at the end of a cell's output, which a thread draws until they are stopped."""

    def __init__(
        self, *columns: ProgressColumn, console: Console, cell: CellOutput, transient: bool
    ):
        self._cell, self._stays, self._over = cell, not transient, threading.Event()
        self._drawing = threading.Thread(target=self._draw, daemon=True)
        super().__init__(*columns, console=console, auto_refresh=False)

    def start(self) -> None:
        self._drawing.start()

    def refresh(self) -> None:
        self._cell.move(self._text())

    def stop(self) -> None:
        self._over.set()
        self._drawing.join()
        self._cell.settle(f"{self._text()}\n" if self._stays else "")

    def _draw(self) -> None:
        while not self._over.wait(self._cell.seconds):
            self.refresh()

    def _text(self) -> str:
        with self.console.capture() as captured:
            self.console.print(self.get_renderable(), soft_wrap=False)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())


def make_bars(*columns: ProgressColumn, console: Console, transient: bool) -> Bars:
    """Returns bars for a console, which vanish when they are stopped where `transient`."""
    if isinstance(console.file, CellOutput):
        return CellBars(*columns, console=console, cell=console.file, transient=transient)
    return Bars(*columns, console=console, transient=transient)


def console_options(cell: CellOutput | None) -> dict[str, Any]:
    """Returns the options of a rich Console that prints to a cell, or to standard output."""
    options: dict[str, Any] = {"force_jupyter": False}  # its way is an output for each line
    if cell is not None:  # a kernel may ask the programs that it starts for colours
        options |= {"file": cell, "width": CELL_COLUMNS, "force_terminal": False}
    return options


def make_cell_output() -> CellOutput | None:
    """Returns an output of the cell that runs; None where no Jupyter kernel runs this program."""
    ipython: Any = sys.modules.get("IPython")
    if ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
        return None
    from IPython.display import DisplayHandle

    handle, is_there = DisplayHandle(), False

    def show(text: str) -> None:
        nonlocal is_there
        change = handle.update if is_there else handle.display
        is_there = True
        change({"text/plain": text}, raw=True)

    return CellOutput(show)
