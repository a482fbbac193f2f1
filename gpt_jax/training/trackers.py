"""Experiment trackers (Weights & Biases, trackio): a run's settings, rows, samples and pictures.

Both have the same functions, as trackio follows wandb's. They are imported when a run has its first
row, and never end it: one that fails is left alone from then on, with one warning. What they print
goes to the standard error.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from typing import Any

from gpt_jax.config import to_dict
from gpt_jax.errors import ConfigError, UserError, suggest
from gpt_jax.run.folder import SAMPLES_FILE, read_config, read_summary
from gpt_jax.storage import Folder, open_folder
from gpt_jax.terminal import one_line, say

TRACKERS = ("wandb", "trackio")
TRACKERS_FILE = "trackers.json"  # of a run or group that is tracked: what trackers know it by
PICTURE = "loss.png"


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of trackers, each once.

    Raises:
      ConfigError: one is unknown.
      UserError: one is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            known = " and ".join(TRACKERS)
            raise ConfigError(
                f"--track {name}: unknown tracker{suggest(name, TRACKERS)}; there are {known}"
            )
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--track {name} needs another package: pip install {name}")
    return tuple(dict.fromkeys(names))


class Trackers:
    """Trackers of one run; `on_row` is for `train`.

        with Trackers(["wandb"], config.run_dir) as trackers:
            run = gpt_jax.train(config, on_row=trackers.on_row)

    What the run ended with is sent on leaving.
    """

    def __init__(
        self,
        names: Sequence[str],
        run_dir: str | os.PathLike[str],
        group: str | os.PathLike[str] | None = None,
        failed: set[str] | None = None,
    ):
        """Checks the names, and imports nothing yet; see `check_trackers`.

        Args:
          names: of trackers.
          run_dir: the run's folder.
          group: the folder of the runs that it belongs to; it names the group.
          failed: the names of trackers that are left alone, which this one adds to.
        """
        self._folder = open_folder(run_dir)
        self._waiting = list(check_trackers(names))
        self._open: dict[str, tuple[Any, Any]] = {}  # name -> (module, its run)
        self._group = None if group is None else open_folder(group)
        self._failed = set() if failed is None else failed
        self._context = contextvars.copy_context()  # trackio knows one run in each

    def __enter__(self) -> Trackers:
        return self

    def on_row(self, row: dict[str, Any]) -> None:
        """Sends the numbers of a row; the first time it opens the trackers."""
        waiting, self._waiting = self._waiting, []
        for name in waiting:
            self._guarded(name, lambda name=name: self._begin(name))
        numbers = {k: v for k, v in row.items() if k != "step" and type(v) in (int, float)}
        for name, (_, run) in [*self._open.items()]:
            self._guarded(name, lambda run=run: run.log(numbers, step=row["step"]))

    def __exit__(self, kind: type | None, *error: object) -> None:
        for name in [*self._open]:
            if kind is None:
                self._guarded(name, lambda name=name: self._send_results(*self._open[name]))
            if name in self._open:
                self._guarded(name, self._open.pop(name)[1].finish)

    def _guarded(self, name: str, act: Callable[[], Any]) -> None:
        """Acts; where a tracker fails, in whatever way, it is left alone from then on."""
        if name in self._failed:
            self._open.pop(name, None)
            return
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self._context.run(act)
        except Exception as error:
            self._open.pop(name, None)
            self._failed.add(name)
            what = f"{type(error).__name__}: {one_line(error):.200}"
            say(f"warning: {name} is told no more, and the run goes on ({what})")

    def _begin(self, name: str) -> None:
        module = importlib.import_module(name)
        config, _ = read_config(self._folder)
        title, key = self._folder.absolute().name, tracker_id(self._folder)
        how: dict[str, Any] = {"project": "gpt_jax", "config": to_dict(config), "resume": "allow"}
        if name == "wandb":
            how |= {"project": os.environ.get("WANDB_PROJECT", "gpt_jax")}
            how |= {"name": title, "id": key}
        else:  # it knows a run by its name
            how |= {"name": f"{title}-{key}", "embed": False}
        if self._group is not None:
            how["group"] = f"{self._group.absolute().name}-{tracker_id(self._group)}"
            how |= {"reinit": "create_new"} if name == "wandb" else {}
        self._open[name] = (module, module.init(**how))

    def _send_results(self, module: Any, run: Any) -> None:
        """Sends what a finished run has: the exact evaluation, samples, the loss curves."""
        summary = read_summary(self._folder)
        if not summary:
            return
        step = summary["step"]
        values = {f"final/{k}": v for k, v in summary["val"].items() if type(v) in (int, float)}
        if self._folder.has(SAMPLES_FILE):
            text = self._folder.read_text(SAMPLES_FILE)
            values["samples"] = module.Table(columns=["step", "text"], data=[[step, text]])
        if self._folder.has(PICTURE):
            path = self._folder.local_path("a picture") / PICTURE
            values["losses"] = module.Image(str(path))
        run.log(values, step=step)


class TrackedRuns:
    """Trackers of runs of one group, such as the members of a sweep; several may go on at once.

    Runs that go on when it is left are closed without results.
    """

    def __init__(self, names: Sequence[str], folder: str | os.PathLike[str]):
        """Checks the names; see `check_trackers`.

        Args:
          names: of trackers; none at all tells nobody.
          folder: that the runs lie in; it names the group.
        """
        self.names = check_trackers(names)
        self._folder = folder
        self._open: dict[str, Trackers] = {}
        self._failed: set[str] = set()

    def __enter__(self) -> TrackedRuns:
        return self

    def on_row(self, run_dir: str | os.PathLike[str], row: dict[str, Any]) -> None:
        """Sends the numbers of a row of a run."""
        key = os.fspath(run_dir)
        if key not in self._open and not self._failed.issuperset(self.names):
            self._open[key] = Trackers(self.names, run_dir, self._folder, self._failed)
        if key in self._open:
            self._open[key].on_row(row)

    def on_end(self, run_dir: str | os.PathLike[str]) -> None:
        """Sends what a run has ended with."""
        if trackers := self._open.pop(os.fspath(run_dir), None):
            trackers.__exit__(None)

    def __exit__(self, kind: type | None, *error: object) -> None:
        while self._open:
            self._open.popitem()[1].__exit__(kind or KeyboardInterrupt)


def tracker_id(folder: Folder) -> str:
    """Returns the id of a run or a group for trackers, which stays where it is resumed or moved."""
    if folder.has(TRACKERS_FILE):
        found = folder.read_json(TRACKERS_FILE)
        key = found.get("id") if isinstance(found, dict) else None
        if isinstance(key, str) and key.isalnum():
            return key
    key = secrets.token_hex(4)
    folder.write(TRACKERS_FILE, json.dumps({"id": key}) + "\n")
    return key
