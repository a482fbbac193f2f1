"""`python main.py replay`: one step of a run, computed again to be looked at."""

from __future__ import annotations

import json

from gpt_jax import devices
from gpt_jax.cli.parsers import add_debug, add_run_dir, verb_parser
from gpt_jax.config.fields import parse


def command(argv: list[str]) -> int:
    parser = verb_parser(
        "replay",
        "--run-dir FOLDER --step N [--json]",
        ".\n\nThe steps from the checkpoint before it are taken again, so one that is near helps\n"
        "(--train.keep-interval). Nothing is written.",
    )
    add_run_dir(parser, "the run's folder")
    parser.add_argument("--step", type=lambda text: parse(text, int, "--step"), required=True,
                        metavar="X", help="the step, from 1")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    add_debug(parser)
    args = parser.parse(argv)

    from gpt_jax.run.folder import read_config

    config, _ = read_config(args.run_dir)
    devices.request_cpu_devices(config.train.micro_batch_size, at_least=config.mesh.n_requested)
    if config.train.deterministic:
        devices.request_determinism()
    from gpt_jax.analysis.replay import replay

    found = replay(args.run_dir, args.step)
    print(json.dumps(found.record(), indent=1) if args.json else found)
    return 0
