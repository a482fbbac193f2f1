"""`python main.py sweep`: a run for each point of a grid and each seed."""

from __future__ import annotations

import json

from gpt_jax import devices
from gpt_jax.cli.options import Parser, add_settings
from gpt_jax.cli.parsers import (
    add_config,
    add_debug,
    add_track,
    batch_settings,
    named_config,
    verb_parser,
)
from gpt_jax.cli.source_settings import with_source_settings, without_source_settings
from gpt_jax.config import Config, load_config, override
from gpt_jax.config.fields import parse
from gpt_jax.errors import ConfigError
from gpt_jax.terminal import visible

OWN = ("config", "debug", "vary", "seeds", "samples", "out", "together", "dry_run")
OWN += ("markdown", "json", "csv", "track")


def command(argv: list[str]) -> int:
    name = named_config("sweep", argv)
    config = load_config(name)
    values = vars(_parser(config).parse(argv))
    own = {each: values.pop(each) for each in OWN}
    if "run_dir" in values:
        raise ConfigError("--run-dir is of one run; the runs of a sweep lie in the folder --out")
    if own["out"] is None:
        raise ConfigError("give the sweep's folder: --out sweeps/NAME")

    from gpt_jax.training.trackers import check_trackers

    check_trackers(own["track"])
    from gpt_jax.experiments.grid import make_points, parse_vary
    from gpt_jax.experiments.members import ONE_CHECKPOINT, parse_seeds

    config, given = without_source_settings(config, {**ONE_CHECKPOINT, **values})
    variations = [parse_vary(text) for text in own["vary"]]
    points = make_points(variations, own["samples"])
    seeds = parse_seeds(own["seeds"], config.seed)
    each = [override(config, batch_settings(point)) for point in points]
    devices.request_cpu_devices(
        max(member.train.micro_batch_size for member in each),
        at_least=config.mesh.n_requested,
    )
    if config.train.deterministic:
        devices.request_determinism()
    config = with_source_settings(config, given)
    from gpt_jax.experiments.sweep_plan import describe_plan, plan_sweep
    from gpt_jax.experiments.sweeps import run_sweep

    quiet = own["json"] or own["csv"] or own["markdown"]
    plan = plan_sweep(
        config, variations, seeds, out=own["out"], samples=own["samples"],
        config_name=own["config"], together=own["together"], quiet=quiet,
    )  # fmt: skip
    if own["dry_run"]:
        print(visible(describe_plan(plan)))
        return 0
    from gpt_jax.report.page import write_page

    result = run_sweep(plan, quiet=quiet, track=own["track"])
    write_page(plan.folder, quiet=quiet)
    if own["json"]:
        print(json.dumps(result.record(), indent=1))
    elif own["csv"]:
        print(visible(result.csv().replace("\r", "")), end="")
    else:
        print(visible(result.markdown() if own["markdown"] else f"\n{result}"))
    return 1 if result.n_diverged else 0


def _parser(config: Config) -> Parser:
    parser = verb_parser(
        "sweep",
        "--out FOLDER [--vary NAME=X,X] [--seeds N] [...]",
        ".\n\nRuns of one shape share compiled programs, in one process. "
        "The same command continues a sweep that was interrupted. The exit status is 1 where a run "
        "diverged.",
    )
    add_config(parser)
    # fmt: off
    parser.add_argument("--vary", action="append", default=[], metavar="SETTING=X,X",
                        help="values of a setting, such as optim.learning-rate=1e-4,3e-4, or with "
                        "--samples a range, such as optim.learning-rate=1e-4..1e-2; may be given "
                        "several times: every value with every other")
    parser.add_argument("--seeds", default="1", metavar="N",
                        help="number of seeds of each point, from --seed on, or seeds such as "
                        "3,5,8 (default: 1)")
    parser.add_argument("--samples", metavar="N", type=lambda text: parse(text, int, "--samples"),
                        help="number of points to draw from the ranges, log-uniformly, as a Sobol "
                        "sequence")
    parser.add_argument("--out", metavar="FOLDER", help="the sweep's folder, with a run for each "
                        "point and seed, sweep.json and the result")
    parser.add_argument("--together", metavar="WAY",
                        help="how runs of one shape are computed: one-after-another, bit for bit "
                        "as alone; side-by-side, a run a device; or stacked, several on a device "
                        "(default: chosen by measuring, and kept)")
    parser.add_argument("--dry-run", action="store_true",
                        help="show the runs, their steps, and time and disk, about; train nothing")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print the result as Markdown")
    form.add_argument("--json", action="store_true", help="print the result as JSON")
    form.add_argument("--csv", action="store_true", help="print a row for each run, as CSV")
    # fmt: on
    add_track(parser)
    add_debug(parser)
    add_settings(parser, config)
    return parser
