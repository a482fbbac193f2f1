"""Runs that are trained together: each by its own `Trainer`, their steps computed by one `Stack`.

A trainer runs in a thread, and asks for steps and evaluations as it would alone. Its thread waits
there until every other trainer waits too; then what comes first in training is computed, for all
who asked for it. So runs may start from checkpoints of different steps: those ahead wait. One
thread runs at a time, so nothing that a trainer does needs a lock of its own.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, cast

import jax
import numpy as np

from gpt_jax import numerics
from gpt_jax.console import Display
from gpt_jax.errors import Diverged, Interrupted, OutOfTime, TrainingError
from gpt_jax.model import Params
from gpt_jax.prng import Keys
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.run_setup import RunSetup
from gpt_jax.training.signals import defer_signals
from gpt_jax.training.stack import Stack
from gpt_jax.training.state import TrainState
from gpt_jax.training.trainer import Beside, train_prepared

EVALUATE, TRAIN = 0, 1  # in the order in which they follow a step
What = tuple[int, int, int]
IN_STACK = cast(TrainState, object())  # the state of a trainer whose arrays the stack has

OnRow = Callable[[dict[str, Any]], None]


class _Abandoned(TrainingError):
    """Another run failed, and this one ends at its last checkpoint."""


class Lockstep:
    """What is computed next, for runs that ask for it from threads of their own.

    Attributes:
      turn: held by the thread that runs; a thread that waits has given it back.
      failure: what a run failed with, other than by diverging; the others end.
    """

    def __init__(self, stack: Stack, n_runs: int):
        self.turn = threading.Condition()
        self.failure: BaseException | None = None
        self._stack = stack
        self._there = set(range(n_runs))
        self._placed: set[int] = set()
        self._asked: dict[int, tuple[What, Callable[[], Any]]] = {}
        self._answers: dict[int, Any] = {}

    def ask(self, slot: int, what: What, place: Callable[[], Any] = lambda: None) -> Any:
        """Returns what is asked for, once it is computed.

        Args:
          slot: of the run.
          what: the steps before it, EVALUATE or TRAIN, and how many steps to take.
          place: called before that; puts the run's state into the stack if it is not there.
        """
        self._asked[slot] = what, place
        self._compute_if_all_wait()
        self.turn.wait_for(lambda: slot in self._answers or self.failure is not None)
        if slot not in self._answers:
            raise _Abandoned("another run failed")
        return self._answers.pop(slot)

    def leave(self, slot: int) -> None:
        """Says that a run asks for nothing more."""
        if slot in self._there:
            self._there.remove(slot)
            self._compute_if_all_wait()

    def fail(self, error: BaseException) -> None:
        """Ends all runs that wait."""
        self.failure = self.failure or error
        self.turn.notify_all()

    def _compute_if_all_wait(self) -> None:
        if self.failure is not None or not self._there or self._there - self._asked.keys():
            return
        first = min(what for what, _ in self._asked.values())
        slots = [slot for slot, (what, _) in self._asked.items() if what == first]
        for slot in slots:
            self._asked.pop(slot)[1]()
        step, kind, steps = first
        if kind == EVALUATE:
            losses = self._stack.evaluate(step)
            self._answers |= {slot: _Row(losses, slot) for slot in slots}
        else:
            self._placed |= set(slots)
            if ahead := self._placed & self._asked.keys():
                raise RuntimeError(f"the states of runs {sorted(ahead)} would be lost")
            metrics = self._stack.train_chunk(steps)
            for slot in slots:
                self._answers[slot] = {name: _Row(array, slot) for name, array in metrics.items()}
        self.turn.notify_all()


class _Row:
    """A row of an array on the devices, which `np.asarray` waits for; they share one copy."""

    def __init__(self, array: jax.Array, i: int):
        self._array, self._i = array, i

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(np.asarray(self._array)[self._i], dtype)


class MemberSteps(CompiledSteps):
    """What one of several runs executes: its steps and evaluations are those of the stack.

    `IN_STACK` stands for a state there. One that was loaded is put there before its first step.
    """

    def __init__(self, setup: RunSetup, slot: int, stack: Stack, lockstep: Lockstep):
        super().__init__(setup.config, setup.splits, stack.loader)
        self._slot, self._stack, self._lockstep = slot, stack, lockstep

    def init_state(self, keys: Keys) -> TrainState:
        return self._place(super().init_state(keys))

    def state_from_params(self, params: Params) -> TrainState:
        return self._place(super().state_from_params(params))

    def train_chunk(
        self,
        state: TrainState,
        keys: Keys,
        step: int,
        steps: int,
        recent_losses: jax.Array | np.ndarray | None = None,
    ) -> tuple[TrainState, Any]:
        place = lambda: self._place(state, recent_losses)
        return IN_STACK, self._lockstep.ask(self._slot, (step, TRAIN, steps), place)

    def evaluate(self, state: TrainState, keys: Keys, step: int) -> Any:
        return self._lockstep.ask(self._slot, (step, EVALUATE, 0))

    def _place(self, state: TrainState, recent_losses: Any = None) -> TrainState:
        if state is not IN_STACK:
            self._stack.put(self._slot, state, recent_losses)
        return IN_STACK

    def whole_state(self, state: TrainState) -> TrainState:
        return self._stack.take(self._slot) if state is IN_STACK else state

    def chunk_program(self, steps: int) -> Future:
        return self._stack.chunk_program(steps)

    def evaluation_program(self) -> Future:
        return self._stack.evaluation_program()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._lockstep.leave(self._slot)


def train_together(
    stack: Stack,
    setups: Sequence[RunSetup],
    on_row: Callable[[int, dict[str, Any]], None],
    on_end: Callable[[int, Diverged | None], None],
    notify: Callable[[], None] = lambda: None,
) -> None:
    """Trains runs of one shape together; each is as `train_prepared` leaves it.

    Args:
      stack: with a slot for each.
      setups: of the runs, prepared.
      on_row: called with a run's number and each row of it. Calls come one at a time, from threads.
      on_end: called when a run has ended, with the error of one that diverged: it ends alone.
      notify: called at the first signal.

    Raises:
      TrainingError, Interrupted, OutOfTime: see `trainer.train`; of the first run that raised one.
    """
    lockstep = Lockstep(stack, len(setups))
    stack.assign([setup.config for setup in setups])
    stops: list[BaseException] = []
    with defer_signals(notify) as signals:

        def run(slot: int) -> None:
            make_steps = lambda setup: MemberSteps(setup, slot, stack, lockstep)
            beside = Beside(make_steps, signals, stack.arrangement)
            to_row = functools.partial(on_row, slot)
            try:
                train_prepared(setups[slot], Display(quiet=True), to_row, beside)
            except Diverged as error:
                on_end(slot, error)
            else:
                on_end(slot, None)
            finally:
                lockstep.leave(slot)

        def run_in_turn(slot: int) -> None:
            with lockstep.turn:
                try:
                    run(slot)
                except (Interrupted, OutOfTime) as error:  # the others are told so themselves
                    stops.append(error)
                except BaseException as error:  # raised below
                    lockstep.fail(error)

        target = numerics.carried(run_in_turn)
        threads = [
            threading.Thread(target=target, args=(slot,), daemon=True)
            for slot in range(len(setups))
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # a second signal: the threads end with the process
            lockstep.failure = error
            raise
    if error := lockstep.failure or next(iter(stops), None):
        raise error
