"""The result of a sweep: plain records of NumPy arrays, which print; read from its folder.

`Sweep` is what `gpt_jax.sweep` returns. Never imports jax. Pictures are in `sweep_pictures.py`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.config import Config, from_dict, load_config
from gpt_jax.config.fields import get_field, iter_fields
from gpt_jax.experiments.grid import show, show_values
from gpt_jax.experiments.members import Member, SweepRecord, member_config, read_sweep
from gpt_jax.experiments.statistics import mean_half_width
from gpt_jax.run.folder import is_run, read_summary
from gpt_jax.run.metrics import read_rows
from gpt_jax.storage import open_folder, to_folder
from gpt_jax.terminal import program_command


@dataclasses.dataclass(frozen=True)
class MemberResult:
    """A member and how it ended.

    Attributes:
      member: what it is.
      loss: exact validation loss after the last step, nats per token; NaN without one.
      bits_per_byte: likewise; NaN where the tokens' bytes are unknown, too.
      best: lowest validation loss of random batches; NaN without an evaluation.
      steps: of its evaluations, int64 (E,).
      losses: the validation losses there, float64 (E,).
    """

    member: Member
    loss: float
    bits_per_byte: float
    best: float
    steps: np.ndarray
    losses: np.ndarray

    @property
    def state(self) -> str:
        if self.member.diverged is not None:
            return "diverged"
        return "unfinished" if math.isnan(self.loss) else "finished"


@dataclasses.dataclass(frozen=True)
class SettingResult:
    """The members of one point of the grid.

    Attributes:
      values: of the settings that are varied.
      seeds: int64 (n,).
      losses: exact validation losses after the last step, nats per token, float64 (n,); NaN of a
        member that has none.
    """

    values: dict[str, Any]
    seeds: np.ndarray
    losses: np.ndarray

    @property
    def is_whole(self) -> bool:
        """Whether every member has its loss."""
        return bool(np.isfinite(self.losses).all())

    @property
    def mean(self) -> float:
        """The mean loss; NaN unless all members have one: those that survive are no fair sample."""
        return float(self.losses.mean())

    @property
    def half_width(self) -> float:
        """Half of the 95% interval of the mean, by Student's t; NaN of fewer than two."""
        return float(mean_half_width(self.losses))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep and what came of it; `str()` of it is what the command prints.

    Attributes:
      folder: of the sweep.
      settings: each point of the grid, in the order in which they ran.
      members: each run.
      best: the setting with the lowest mean loss, of those whose members all finished; or None.
      command: trains with that setting.
      seconds: that the members took.
    """

    folder: Path
    settings: tuple[SettingResult, ...]
    members: tuple[MemberResult, ...]
    best: SettingResult | None
    command: str
    seconds: float

    @property
    def n_diverged(self) -> int:
        return sum(m.state == "diverged" for m in self.members)

    def table(self) -> list[list[str]]:
        """Returns the settings by their mean loss, in cells, under a heading."""
        names = list(self.settings[0].values)
        rows = [[*(name.rpartition(".")[2] for name in names), "n", "loss", "± 95%", "members"]]
        last = lambda s: math.inf if math.isnan(s.mean) else s.mean
        for setting in sorted(self.settings, key=last):
            losses = " ".join(_number(loss) for loss in setting.losses)
            means = [_number(setting.mean), _number(setting.half_width)]
            shown = [show(value) for value in setting.values.values()]
            rows.append([*shown, str(len(setting.losses)), *means, losses])
        return rows

    def member_table(self) -> list[list[str]]:
        """Returns every member's row, in cells, under a heading."""
        names = list(self.settings[0].values)
        rows = [["run_dir", *names, "seed", "state", "loss", "bits_per_byte", "best", "seconds"]]
        for each in self.members:
            member = each.member
            rows.append(
                [
                    member.run_dir,
                    *(show(value) for value in member.values.values()),
                    str(member.seed),
                    each.state,
                    *(_number(x, 6) for x in (each.loss, each.bits_per_byte, each.best)),
                    "" if member.seconds is None else f"{member.seconds:.1f}",
                ]
            )
        return rows

    @property
    def facts(self) -> list[str]:
        """What stands below the table."""
        lines = ["exact validation loss after the last step, nats per token; mean of n seeds"]
        if self.n_diverged:
            lines.append(f"{self.n_diverged} of {len(self.members)} members diverged")
        lines.append(f"{len(self.members)} members took {self.seconds:,.0f} s")
        if self.best is not None:
            lines.append(f"lowest: {show_values(self.best.values)}")
            lines.append(f"train with it: {self.command}")
        return lines

    def __str__(self) -> str:
        rows = self.table()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        text = ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
                for row in rows]  # fmt: skip
        return "\n".join([*text, "", *self.facts])

    def markdown(self) -> str:
        """Returns both tables in Markdown."""
        both = [*_markdown(self.table()), "", *(f"{fact}  " for fact in self.facts), ""]
        return "\n".join([*both, *_markdown(self.member_table())]) + "\n"

    _repr_markdown_ = markdown

    def csv(self) -> str:
        """Returns every member's row as CSV (RFC 4180)."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerows(self.member_table())
        return text.getvalue()

    def record(self) -> dict[str, Any]:
        """Returns the result for JSON; null stands for what there is not."""
        settings = [
            {
                "values": s.values,
                "seeds": s.seeds.tolist(),
                "losses": [_finite(x) for x in s.losses.tolist()],
                "mean": _finite(s.mean),
                "half_width": _finite(s.half_width),
            }
            for s in self.settings
        ]
        members = [
            {
                **dataclasses.asdict(m.member),
                "state": m.state,
                "loss": _finite(m.loss),
                "bits_per_byte": _finite(m.bits_per_byte),
                "best": _finite(m.best),
            }
            for m in self.members
        ]
        best = None if self.best is None else self.best.values
        return {
            "settings": settings,
            "members": members,
            "best": best,
            "command": self.command,
            "seconds": self.seconds,
        }

    def write(self) -> None:
        """Writes result.md, result.json, result.csv and the pictures into the folder."""
        from gpt_jax.experiments.sweep_pictures import draw

        folder = open_folder(self.folder)
        folder.write("result.md", self.markdown())
        folder.write("result.json", json.dumps(self.record(), indent=1) + "\n")
        folder.write("result.csv", self.csv())
        draw(self)

    def plot(self) -> list[Path]:
        """Draws the curves, and the final loss against each setting; returns their paths."""
        from gpt_jax.experiments.sweep_pictures import draw

        return draw(self)


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _number(value: float, digits: int = 4) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read_result(folder: str | os.PathLike[str]) -> Sweep:
    """Returns the result of a sweep's folder, finished or not.

    Raises:
      UserError: it is no sweep, or damaged.
    """
    place = to_folder(folder)
    record = read_sweep(place)
    members = tuple(_member_result(place, member) for member in record.members)
    points: list[dict[str, Any]] = []
    for member in record.members:
        if member.values not in points:
            points.append(member.values)
    settings = []
    for values in points:
        mine = [m for m in members if m.member.values == values]
        seeds = np.array([m.member.seed for m in mine], np.int64)
        settings.append(SettingResult(values, seeds, np.array([m.loss for m in mine])))
    whole = [setting for setting in settings if setting.is_whole]
    best = min(whole, key=lambda s: s.mean, default=None)
    command = "" if best is None else best_command(place, record, best.values)
    seconds = sum(member.seconds or 0.0 for member in record.members)
    return Sweep(place, tuple(settings), members, best, command, seconds)


def _member_result(folder: Path, member: Member) -> MemberResult:
    run_dir = folder / member.run_dir
    there = is_run(run_dir)
    found = read_summary(run_dir).get("val", {}) if there and member.diverged is None else {}
    rows = read_rows(run_dir) if there else []
    evaluations = {row["step"]: row["val_loss"] for row in rows if row.get("val_loss") is not None}
    numbers = [found.get(name) for name in ("nats_per_token", "bits_per_byte")]
    loss, bits = (math.nan if number is None else float(number) for number in numbers)
    return MemberResult(
        member,
        loss,
        bits,
        min(evaluations.values(), default=math.nan),
        np.array(list(evaluations), np.int64),
        np.array(list(evaluations.values()), np.float64),
    )


def best_command(folder: Path, record: SweepRecord, values: dict[str, Any]) -> str:
    """Returns the command that trains with a setting, in a folder of its own beside the members.

    It names what differs from the config that `--config` named, or from nano.
    """
    member = next(m for m in record.members if m.values == values)
    config = member_config(from_dict(record.config), values, member.seed, str(folder / "best"))
    name = record.config_name
    words = ["--config", name] if name else []
    default = load_config(name or "nano")
    for setting, _, field in iter_fields(Config):
        value = get_field(config, setting)
        incidental = setting in ("train.keep_checkpoints", "train.keep_best")
        if incidental or field.metadata["internal"] or value == get_field(default, setting):
            continue
        words += ["--" + setting.replace("_", "-"), show(value)]
    return program_command("train", *words)
