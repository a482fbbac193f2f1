"""What would make a finished run better, and the command for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpt_jax.config import Config, list_configs, load_config, override
from gpt_jax.config.fields import get_field, iter_fields
from gpt_jax.console import Display, format_duration
from gpt_jax.errors import UserError
from gpt_jax.parallel import multihost
from gpt_jax.run import checkpoints
from gpt_jax.run.folder import read_init_from
from gpt_jax.run.load import Run
from gpt_jax.terminal import program_command
from gpt_jax.training.init_from import COMPUTE_SETTINGS, FREE_SETTINGS, start_from
from gpt_jax.training.resume import resume_config

TIMES = 10  # as many steps


def advise(run: Run, display: Display, seconds_per_step: float | None = None) -> None:
    """Says how to train longer and how long that takes; or that longer training would harm.

    Args:
      run: with all its steps.
      display: where to say it.
      seconds_per_step: as measured in this process; None where it took no step.
    """
    losses = [row["val_loss"] for row in run.rows if "val_loss" in row][-3:]
    if len(losses) == 3 and losses[0] < losses[1] < losses[2]:
        shown = ", ".join(f"{loss:.4f}" for loss in losses)
        display.line(
            f"the validation loss rises ({shown}): more steps would make it worse. Try more text "
            "or a larger --model.dropout, with another --run-dir"
        )
        best = checkpoints.best_step(run.run_dir)
        if best is not None and best < run.step:
            best_run = ("--run-dir", run.run_dir, "--checkpoint", "best")
            command = program_command("sample", *best_run)
            display.command(f"the best checkpoint, of step {best}", command)
        return
    steps = TIMES * run.step
    details = []
    if seconds_per_step is not None:
        details.append(f"about {format_duration((steps - run.step) * seconds_per_step)} more")
    end = run.config.optim.schedule_steps
    if run.config.optim.schedule != "constant" and end is not None and end < steps:
        details.append(f"from step {end} at the lowest learning rate of its schedule")
    if multihost.host_count() > 1:
        details.append("on every host, with its --hosts settings")
    detail = f" ({'; '.join(details)})" if details else ""
    display.command(f"{TIMES} times the steps{detail}", resume_command(run, steps))


def resume_command(run: Run, steps: int) -> str:
    """Returns the command line that resumes a run until it has so many steps.

    It names the config that the run's settings differ from least, and those settings that
    `resume_config` would otherwise refuse or change.
    """
    if run.config.branch_from is not None:
        longer_run = override(run.config, {"train.steps": steps, "run_dir": str(run.run_dir)})
        return train_command(longer_run, read_init_from(run.run_dir))
    name, values = min(_differences(run.config), key=lambda found: len(found[1]))
    named = load_config(name)
    longer = {"train.steps": steps}
    wanted = _resumed(named, values | longer, run)
    for setting in list(values):
        fewer = {other: value for other, value in values.items() if other != setting}
        if wanted and _resumed(named, fewer | longer, run) == wanted:
            values = fewer
    return program_command(*_words(name, values | longer))


def train_command(config: Config, origin: Mapping[str, Any]) -> str:
    """Returns the command line that begins a run of these settings, in `config.run_dir`.

    It names the config that they differ from least; that of a branch names its parent.

    Args:
      config: the settings.
      origin: what `read_init_from` says of a run that has them: of a branch, what it changed.
    """
    if config.branch_from is not None:
        return _branch_command(config, origin.get("change") or {})
    return program_command(*config_words(config))


def config_words(config: Config, ignored: Iterable[str] = ()) -> list[str]:
    """Returns the options that stand for some settings, but those that are `ignored`."""
    name, values = min(_differences(config), key=lambda found: len(found[1]))
    if config.init_from is not None:  # which else decides these
        values |= {setting: get_field(config, setting) for setting in FREE_SETTINGS}
    return _words(name, {s: value for s, value in values.items() if s not in ignored})


def _words(name: str, values: dict[str, Any]) -> list[str]:
    words = ["--config", name]
    for setting, value in values.items():
        words += ["--" + setting.replace("_", "-"), _to_text(value)]
    return words


def _branch_command(config: Config, change: Mapping[str, Any]) -> str:
    """Returns the command line that begins or resumes a branch: what it changed, and the steps."""
    words = ["--branch-from", str(config.branch_from), "--at-step", str(config.at_step)]
    words += ["--run-dir", config.run_dir]
    for setting, both in change.items():
        if setting not in ("train.steps", "sample.prompt"):
            words += ["--" + setting.replace("_", "-"), _to_text(both["to"])]
    return program_command(*words, "--train.steps", str(config.train.steps))


def _differences(config: Config) -> list[tuple[str, dict[str, Any]]]:
    """Returns (name, settings of `config` that are others there) for each named config."""
    offered = [name for name, _, field in iter_fields(Config) if not field.metadata["internal"]]
    if config.init_from is not None:  # which brings its model and its tokenizer
        brought = {name for name in offered if name.startswith("model.")} - {*COMPUTE_SETTINGS}
        brought |= {"data.tokenizer", "data.vocab_size"}
        offered = [name for name in offered if name not in brought]
    found = []
    for name in list_configs():
        try:
            named = load_config(name)
        except UserError:
            continue
        values = {setting: get_field(config, setting) for setting in offered}
        differ = {s: value for s, value in values.items() if get_field(named, s) != value}
        found.append((name, differ))
    return found


def _resumed(named: Config, values: dict[str, Any], run: Run) -> Config | None:
    """Returns the settings that a command line resumes a run with; None where it is refused."""
    try:
        config = override(named, values)
        if config.init_from is not None:
            config = start_from(config, {})
        return resume_config(config, run.config, run.corpus, run.step)
    except UserError:
        return None


def _to_text(value: Any) -> str:
    """Returns a value as `fields.parse` reads it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
