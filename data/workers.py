"""The processes of one machine that make parts side by side; what each does is in `parts.py`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from data.config import PrepareConfig
from data.encode import encode_unit, prepare_and_count, start_process
from gpt_jax.devices import usable_cores
from gpt_jax.errors import TrainingError


class WorkerPool:
    """The processes that make parts; as a context, they end with it, whatever happens.

    Attributes:
      n: how many; with 1 there is none but the caller's.
      n_tokens: that they have encoded.
    """

    def __init__(self, config: PrepareConfig, work: Path, units: range):
        """Lets them start, which takes them a moment.

        Args:
          config: says how many they may be.
          work: the folder `.prepare` of the corpus.
          units: the numbers of those whose parts are to be made.
        """
        self.n = min(config.workers or usable_cores(), max(len(units), 1))
        self._engine, self._work, self._units = config.engine, work, units
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        self._running: dict[int, concurrent.futures.Future[None]] = {}
        if self.n == 1 or config.engine != "local":
            return
        context = multiprocessing.get_context("spawn")
        self._counter = context.Value("q", 0)
        self._pool = concurrent.futures.ProcessPoolExecutor(
            self.n, context, initializer=start_process, initargs=(self._counter,)
        )
        with _tell_of_kills():
            for _ in range(self.n):
                self._pool.submit(int)

    def __enter__(self) -> WorkerPool:
        return self

    def parts(self, wait: Callable[[int], None]) -> Iterator[int]:
        """Sees to it that the parts come to be, and yields each one's number, in order.

        Args:
          wait: is called with `n_tokens` now and then.

        Raises:
          UserError: a unit is damaged, and damage is to stop.
          TrainingError: a process was killed, or a unit could not be had.
        """
        if self._engine == "datatrove" and self._units:
            from data.engines import run_datatrove

            run_datatrove(self._work, self._units.start, self._units.stop, self.n)
        for number in self._units:
            self._make(number, wait)
            yield number

    def _make(self, number: int, wait: Callable[[int], None]) -> None:
        """Makes a part, and begins with those after it: two for each process.

        So unfinished work takes little room on the disk.
        """
        work = str(self._work)
        if self._pool is None:
            encode_unit(work, number)
            return
        with _tell_of_kills():
            for ahead in range(number, min(number + 2 * self.n + 1, self._units.stop)):
                if ahead not in self._running:
                    self._running[ahead] = self._pool.submit(prepare_and_count, work, ahead)
            while not self._running[number].done():
                concurrent.futures.wait([self._running[number]], timeout=0.25)
                wait(self.n_tokens)
            self._running.pop(number).result()

    @property
    def n_tokens(self) -> int:
        return self._counter.value if self._pool else 0

    def __exit__(self, *_: object) -> None:
        if self._pool is None:
            return
        for process in list(getattr(self._pool, "_processes", None) or {}):
            with contextlib.suppress(ProcessLookupError):
                if self._running:  # something went wrong: don't wait for what nobody wants
                    os.kill(process, signal.SIGTERM)
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _tell_of_kills() -> Generator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise TrainingError(
            "a process was killed, perhaps for its memory (fewer --workers need less); run the "
            "same command again to resume"
        ) from error
