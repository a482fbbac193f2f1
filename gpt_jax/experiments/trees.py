"""Checkouts of the code, each of which trains its runs in processes of its own.

So a trial compares code, not settings: nothing of one tree is imported by the other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_jax.config import Config
from gpt_jax.config.fields import get_field, iter_fields
from gpt_jax.config.files import checkout_dir
from gpt_jax.errors import (
    ConfigError,
    Diverged,
    Interrupted,
    OutOfTime,
    TrainingError,
    UserError,
)
from gpt_jax.experiments import child
from gpt_jax.storage import open_folder

CODE = ("main.py", "gpt_jax/**/*.py", "configs/*.py")  # what a run of a tree executes
# How a run's last line says that it diverged; see `training.divergence`.
DIVERGED = re.compile("the loss is a spike|the loss or its gradient is not finite")
OUT_OF_TIME = 75
# Reads a config file by the code of a tree, which imports no jax for it.
READ_CONFIG = (
    "import runpy, sys; sys.path.insert(0, sys.argv[1]); "
    "runpy.run_path(sys.argv[2])['get_config']()"
)
CONFIG_ERROR = "gpt_jax.errors.ConfigError: "  # as Python ends a traceback


@dataclasses.dataclass(frozen=True)
class Tree:
    """A checkout of the code.

    Attributes:
      path: of its root.
      commit: that is checked out; None where git does not say.
      dirty: there are changes that are not committed.
      sha256: of the code.
    """

    path: str
    commit: str | None
    dirty: bool
    sha256: str

    def __str__(self) -> str:
        commit = f"commit {self.commit[:10]}" if self.commit else "no commit"
        return f"{self.path}, {commit}{', with changes' if self.dirty else ''}"


def read_trees(against: str | os.PathLike[str]) -> dict[str, Tree]:
    """Returns this program's own tree as the baseline, and another as the change.

    Raises:
      ConfigError: the other is no checkout, or this one, or this program is not in a checkout.
    """
    own = checkout_dir()
    if own is None:
        raise ConfigError(
            "--against compares two checkouts, and this program is installed; run it in the "
            "baseline's: python main.py trial"
        )
    path = Path(against).expanduser()
    missing = [name for name in ("main.py", "gpt_jax", "configs") if not (path / name).exists()]
    if missing:
        raise ConfigError(
            f"--against {against} is no checkout of the code: it has no {missing[0]}; make one "
            "with: git worktree add PATH BRANCH"
        )
    trees = {"base": read_tree(own), "change": read_tree(path)}
    if trees["base"].path == trees["change"].path:
        raise ConfigError(f"--against {against} is this checkout itself; name the other one")
    return trees


def read_tree(path: str | os.PathLike[str]) -> Tree:
    """Returns what the code of a checkout is now."""
    root = Path(os.path.realpath(path))
    digest = hashlib.sha256()
    for file in sorted(file for pattern in CODE for file in root.glob(pattern)):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    top = _git(root, "rev-parse", "--show-toplevel")
    is_root = top is not None and os.path.realpath(top) == str(root)
    commit = _git(root, "rev-parse", "HEAD") if is_root else None
    dirty = bool(_git(root, "status", "--porcelain")) if is_root else False
    return Tree(str(root), commit or None, dirty, digest.hexdigest())


def _git(root: Path, *words: str) -> str | None:
    """Returns what a command of git prints; None where it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def check_unchanged(trees: Mapping[str, Tree], out: str | os.PathLike[str]) -> None:
    """Raises UserError where the code of a tree is not what it was when the trial began."""
    for side, tree in trees.items():
        if read_tree(tree.path).sha256 != tree.sha256:
            raise UserError(
                f"the code in {tree.path} ({side}) has changed since {out} began ({tree}), and a "
                "trial compares the same code in all its pairs; restore it, or choose another --out"
            )


def config_text(config: Config) -> str:
    """Returns a config file with the settings that differ from the defaults, for any tree."""
    values = {
        name: get_field(config, name)
        for name, _, _ in iter_fields(Config)
        if get_field(config, name) != get_field(Config(), name)
    }
    lines = "".join(f"            {name!r}: {value!r},\n" for name, value in values.items())
    return (
        '"""A run of one side of a trial, as `trial --against` wrote it."""\n\n'
        "from gpt_jax.config import Config, override\n\n\n"
        "def get_config():\n"
        f"    return override(\n        Config(),\n        {{\n{lines}        }},\n    )\n"
    )


def check_settings(tree: Tree, config: Config) -> None:
    """Raises ConfigError where the code of a tree does not take the settings of a run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.py"
        file.write_text(config_text(config), encoding="utf-8")
        words = [sys.executable, "-P", "-c", READ_CONFIG, tree.path, str(file)]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace")
    if done.returncode:
        *_, line = ["without a word", *filter(str.strip, done.stderr.splitlines())]
        raise ConfigError(f"in {tree.path}: {line.removeprefix(CONFIG_ERROR)}")


def train_in_tree(tree: Tree, config: Config, file: Path) -> None:
    """Trains a run with the code of a tree, in a process of its own; or resumes it.

    That process ends with this one, however this one ends.

    Args:
      tree: the checkout.
      config: the settings.
      file: where its config file is written.

    Raises:
      Diverged, TrainingError, UserError, OutOfTime: as that process ended, with its last line.
      Interrupted: this process got a signal, and has passed it on.
    """
    from gpt_jax.training.signals import defer_signals

    open_folder(file.parent).write(file.name, config_text(config))
    script, words = Path(tree.path) / "main.py", ("train", "--config", str(file))
    # A session of its own: a terminal's Ctrl-C comes once.
    how: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    how |= {"errors": "replace", "start_new_session": True}
    with defer_signals(lambda: None) as caught, child.start(script, *words, **how) as process:
        shown = _wait(process, caught)
    if caught:
        raise Interrupted(caught[0], "stopped; run the same command to continue the trial")
    if process.returncode:
        lines = [line for line in shown.splitlines() if line.strip()]
        raise _error(process.returncode, tree, lines[-1] if lines else "without a word")


def _wait(process: subprocess.Popen[str], caught: list[int]) -> str:
    """Returns what a process wrote to its errors, once it has ended; the first signal is passed."""
    passed = False
    while True:
        try:
            return process.communicate(timeout=0.2)[1]
        except subprocess.TimeoutExpired:
            if caught and not passed:
                passed = True
                process.send_signal(caught[0])


def _error(status: int, tree: Tree, line: str) -> Exception:
    """Returns the error that another process has ended with."""
    line = line.removeprefix("error: ")
    if status == OUT_OF_TIME:
        return OutOfTime(line)
    if status == 1 and DIVERGED.search(line):
        return Diverged(line)
    kind = UserError if status == 2 else TrainingError
    return kind(f"in {tree.path}: {line} (exit status {status})")
