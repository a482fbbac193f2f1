"""`python main.py replay`: recomputes one training step of a run, to inspect it."""

from __future__ import annotations

import json

from gpt_jax import devices
from gpt_jax.cli.parsers import add_debug, add_run_dir, verb_parser
from gpt_jax.config.fields import parse
from gpt_jax.terminal import visible


def command(argv: list[str]) -> int:
    parser = verb_parser(
        "replay",
        "--run-dir FOLDER --step N [--json]",
        ".\n\nTraining is repeated from the last checkpoint before that step; "
        "--train.keep-interval keeps more of them. Nothing is written.",
    )
    add_run_dir(parser, "the run's folder")
    parser.add_argument("--step", type=lambda text: parse(text, int, "--step"), required=True,
                        metavar="X", help="number of the step, from 1")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_debug(parser)
    args = parser.parse(argv)

    from gpt_jax.run.folder import read_config

    config, _ = read_config(args.run_dir)
    devices.request_cpu_devices(config.train.micro_batch_size, at_least=config.mesh.n_requested)
    if config.train.deterministic:
        devices.request_determinism()
    from gpt_jax.analysis.replay import replay

    found = replay(args.run_dir, args.step)
    print(json.dumps(found.record(), indent=1) if args.json else visible(found))
    return 0
