"""`python main.py train`, or no verb: trains a model, or resumes a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt_jax import devices
from gpt_jax.cli import VERBS
from gpt_jax.cli.options import TABLE_INDENT, Parser, add_settings
from gpt_jax.cli.parsers import add_config, add_debug, add_track, named_config
from gpt_jax.cli.source_settings import with_source_settings, without_source_settings
from gpt_jax.config import Config, list_configs, load_config
from gpt_jax.config.fields import parse
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.parallel.multihost import HostsConfig, Launch, connect, is_host0
from gpt_jax.terminal import program
from gpt_jax.version import __version__


def command(argv: list[str]) -> int:
    name, asks_help = named_config("train", argv), bool({"-h", "--help"} & set(argv))
    config = _config_for_help(name) if asks_help else load_config(name)
    values = vars(_parser(config).parse(argv))
    named = values.pop("config")
    del values["debug"]
    of_hosts = [name for name in values if name.startswith("hosts.")]
    hosts = HostsConfig(**{name.removeprefix("hosts."): values.pop(name) for name in of_hosts})
    tracked, parent, at_step = (values.pop(name) for name in ("track", "branch_from", "at_step"))
    if tracked:
        from gpt_jax.training.trackers import check_trackers

        check_trackers(tracked)
    given = {}
    if parent is not None or at_step is not None:
        config = _branch(parent, at_step, named, values)
    else:
        config, given = without_source_settings(config, values)

    n = hosts.count or 1
    devices.request_cpu_devices(
        max(1, config.train.micro_batch_size // n), at_least=-(-config.mesh.n_requested // n)
    )
    if config.train.deterministic:
        devices.request_determinism()
    connect(hosts, has_tpu=devices.has_tpu())
    from gpt_jax.console import Display

    with Display() as display:
        display.doing("loading jax")  # which takes a second or two
        from gpt_jax.training.trainer import train

    config = with_source_settings(config, given)
    if not tracked or not is_host0():
        train(config)
        return 0
    from gpt_jax.training.trackers import Trackers

    with Trackers(tracked, config.run_dir) as trackers:
        train(config, on_row=trackers.on_row)
    return 0


def _branch(
    parent: str | None, at_step: int | None, named: str | None, values: dict[str, Any]
) -> Config:
    """Returns the settings of a branch; see `training.branches.branch_from`."""
    if parent is None:
        raise ConfigError("--at-step is given without the run to branch from: --branch-from FOLDER")
    if at_step is None:
        raise ConfigError(f"--branch-from {parent} needs the step to continue from: --at-step X")
    if named is not None:
        raise ConfigError(
            f"--config {named} can't be given to a branch, whose settings are those of its parent "
            f"{parent}; give those that change one by one"
        )
    from gpt_jax.training.branches import branch_from

    return branch_from(parent, at_step, values)


def _config_for_help(name: str) -> Config:
    """Returns the config whose defaults --help shows, which answers whatever else is wrong."""
    try:
        return load_config(name)
    except UserError:
        return load_config("nano")


def _parser(config: Config) -> Parser:
    configs, verbs = _table(list_configs()), _table(VERBS)
    parser = Parser(
        prog=f"{program()} train",
        usage=f"{program()} [train] [--config NAME] [--GROUP.SETTING X ...]",
        description="Train a GPT, show its loss, and generate text.\n\n"
        f"verbs (each has its own --help):\n{verbs}\n\nconfigs:\n{configs}",
        epilog="Run the same command again to resume an interrupted run. The defaults shown are "
        "those of --config.",
    )
    add_config(parser)
    add_debug(parser)
    parser.add_argument("--version", action="version", version=f"gpt_jax {__version__}")
    # fmt: off
    parser.add_argument("--branch-from", metavar="FOLDER",
                        help="continue another run from one of its steps, in a folder of its own: "
                        "with its optimizer state, batches and masks; settings default to its own")
    parser.add_argument("--at-step", metavar="X", type=lambda text: parse(text, int, "--at-step"),
                        help="with --branch-from: the step of that run to continue from; any that "
                        "it has taken")
    # fmt: on
    add_track(parser)
    add_settings(parser, config)
    add_settings(parser, Launch())
    return parser


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(f"  {name:<{TABLE_INDENT - 3}} {line}" for name, line in rows.items())
