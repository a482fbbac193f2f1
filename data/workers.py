"""The worker processes of one machine, which encode units in parallel; see `encode.py`."""

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
from data.encode import encode_and_count, encode_unit, start_process
from gpt_jax.devices import usable_cores
from gpt_jax.errors import TrainingError


class WorkerPool:
    """Worker processes that encode units; a context manager, which stops them at its end.

    Attributes:
      n: number of processes; 1 means the calling process.
      n_tokens: tokens that they have encoded.
    """

    def __init__(self, config: PrepareConfig, work: Path, units: range):
        """Starts the processes, without waiting for them.

        Args:
          config: its `workers` and `engine`.
          work: the folder `.prepare` of the corpus.
          units: the numbers of the units to encode.
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
        with _report_kills():
            for _ in range(self.n):
                self._pool.submit(int)

    def __enter__(self) -> WorkerPool:
        return self

    def encode(self, wait: Callable[[int], None]) -> Iterator[int]:
        """Encodes the units, and yields the number of each, in order, once it is encoded.

        Args:
          wait: called with `n_tokens` regularly.

        Raises:
          UserError: a unit is damaged, and `on_damage` is "stop".
          TrainingError: a process was killed, or a unit could not be downloaded.
        """
        if self._engine == "datatrove" and self._units:
            from data.engines import run_datatrove

            run_datatrove(self._work, self._units.start, self._units.stop, self.n)
        for number in self._units:
            self._encode(number, wait)
            yield number

    def _encode(self, number: int, wait: Callable[[int], None]) -> None:
        """Encodes a unit, and starts on the next ones: two per process.

        This bounds the disk space of units that wait to be merged.
        """
        work = str(self._work)
        if self._pool is None:
            encode_unit(work, number)
            return
        with _report_kills():
            for ahead in range(number, min(number + 2 * self.n + 1, self._units.stop)):
                if ahead not in self._running:
                    self._running[ahead] = self._pool.submit(encode_and_count, work, ahead)
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
                if self._running:  # an error: don't wait for results that are not needed
                    os.kill(process, signal.SIGTERM)
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _report_kills() -> Generator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise TrainingError(
            "a process was killed, perhaps for its memory (fewer --workers need less); run the "
            "same command again to resume"
        ) from error
