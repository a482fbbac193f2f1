"""What a sweep starts from: its members, read and checked as far as can be before anything runs.

Read `grid.py` for what is varied, `members.py` for sweep.json.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from gpt_jax import numerics
from gpt_jax.config import Config, fix_schedule
from gpt_jax.console import Display
from gpt_jax.errors import ConfigError, UserError, suggest
from gpt_jax.experiments.estimate import estimate, estimate_text
from gpt_jax.experiments.grid import Variation, make_points, show_values
from gpt_jax.experiments.members import (
    WAYS,
    Member,
    SweepRecord,
    Together,
    check_seeds,
    is_finished,
    make_members,
    member_config,
    new_record,
    open_sweep,
    shape_of,
)
from gpt_jax.experiments.together import arrange, choose
from gpt_jax.parallel import multihost
from gpt_jax.storage import to_folder
from gpt_jax.training.run_setup import RunSetup, check_machine, prepare_beside


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """All that a sweep starts from, read and checked.

    Attributes:
      folder: of the sweep.
      base: the settings that members share; its seed is the first one.
      record: of the members; as in the folder where that exists.
      is_new: whether the folder does not exist yet.
      setups: {shape: the setup of the first member of it that is to run}.
    """

    folder: Path
    base: Config
    record: SweepRecord
    is_new: bool
    setups: dict[str, RunSetup]

    def config_of(self, member: Member) -> Config:
        place = str(self.folder / member.run_dir)
        return member_config(self.base, member.values, member.seed, place)

    def is_finished(self, member: Member) -> bool:
        return is_finished(self.folder, member, self.config_of(member).train.steps)

    def groups(self) -> dict[str, list[int]]:
        """Returns {shape: the numbers of its members that are to run}, in their order."""
        groups: dict[str, list[int]] = {}
        for i, member in enumerate(self.record.members):
            if not self.is_finished(member):
                groups.setdefault(shape_of(self.config_of(member)), []).append(i)
        return groups

    def together(self) -> Together:
        """Returns how members run: as asked, as before, or chosen by measuring a few steps."""
        if self.record.together is not None:
            return self.record.together
        groups = self.groups()
        shape = max(groups, key=lambda shape: len(groups[shape]))
        todo = [self.record.members[i] for group in groups.values() for i in group]
        n_steps = sum(self.config_of(member).train.steps for member in todo)
        return choose(self.setups[shape], len(groups[shape]), n_steps)


@numerics.fixed()
def plan_sweep(
    config: Config,
    variations: Sequence[Variation],
    seeds: Sequence[int],
    *,
    out: str | os.PathLike[str],
    samples: int | None = None,
    config_name: str | None = None,
    together: str | None = None,
    quiet: bool = False,
) -> SweepPlan:
    """Returns a sweep, read and checked as far as can be before anything is computed.

    Args:
      config: the settings that are not varied, as they are used.
      variations: what is varied.
      seeds: of each point.
      out: the sweep's folder.
      samples: how many points of the ranges are drawn.
      config_name: what `--config` named, for the command that is recommended.
      together: how members run, of `members.WAYS`; None as before, or as measured.
      quiet: print nothing.

    Raises:
      UserError: what is wrong, and what to do about it.
    """
    if multihost.host_count() > 1:
        raise UserError("a sweep runs on one host; start it without --hosts.count")
    if together is not None and together not in WAYS:
        raise ConfigError(
            f"--together takes {', '.join(WAYS)}; not {together!r}{suggest(together, WAYS)}"
        )
    folder = to_folder(os.path.expanduser(os.fspath(out)))
    points = make_points(variations, samples)
    base = dataclasses.replace(config, seed=seeds[0] if len(seeds) else 0)
    members = make_members(base, points, check_seeds(seeds))
    found = open_sweep(folder, base, config_name, members)
    record = found or new_record(base, config_name, members)
    if together is not None:
        record = dataclasses.replace(record, together=Together(together, "as asked for"))
    plan = SweepPlan(folder, base, record, found is None, {})
    with Display(quiet) as display:
        display.doing("reading the corpus")
        plan = dataclasses.replace(plan, setups=_first_setups(plan, display))
    if record.together is not None:
        for shape, group in plan.groups().items():
            arrange(record.together.way, plan.setups[shape], len(group))
    return plan


def _first_setups(plan: SweepPlan, display: Display) -> dict[str, RunSetup]:
    """Returns the setup of the first member to run of each shape, checked for this machine."""
    setups: dict[str, RunSetup] = {}
    other = None
    for member in plan.record.members:
        if plan.is_finished(member):
            continue
        config = plan.config_of(member)
        if (shape := shape_of(config)) in setups:
            continue
        try:
            setups[shape] = other = prepare_beside(config, other, display.download)
            check_machine(fix_schedule(other.config), resumes=other.resumes)
        except UserError as error:
            raise ConfigError(f"the member {show_values(member.values)}: {error}") from error
    return setups


def describe_plan(plan: SweepPlan) -> str:
    """Returns what a sweep would do, as text: members, steps, estimated time and disk.

    A chunk of steps and an evaluation of each shape are run for it, in memory.
    """
    members, groups = plan.record.members, plan.groups()
    todo = [i for group in groups.values() for i in group]
    lines = [f"{members[i].run_dir}: {members[i]}" for i in todo]
    steps = sum(plan.config_of(members[i]).train.steps for i in todo)
    lines += ["", f"{len(todo)} members to run, {len(members) - len(todo)} done; {steps:,} steps"]
    lines += [f"shapes, each compiled once: {len(groups)}"]
    if todo:
        together = plan.together()
        lines[-1] += f"; {together}"
        estimates = {}
        for shape, group in groups.items():
            setup = plan.setups[shape]
            estimates[shape] = estimate(setup, arrange(together.way, setup, len(group)))
        runs = [estimates[shape] for shape, group in groups.items() for _ in group]
        lines += estimate_text(estimates.values(), runs)
    return "\n".join(lines)
