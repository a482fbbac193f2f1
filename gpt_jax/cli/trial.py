"""`python main.py trial`: does a change help? Pairs of runs until that is decided."""

from __future__ import annotations

import json
from typing import Any

from gpt_jax import devices
from gpt_jax.cli.options import add_settings
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
from gpt_jax.errors import ConfigError, suggest
from gpt_jax.experiments.fixed_settings import changed_hint, variable_settings
from gpt_jax.terminal import say, visible


def command(argv: list[str]) -> int:
    config = load_config(named_config("trial", argv))
    parser = verb_parser(
        "trial",
        "--change NAME=X --out FOLDER [...]",
        ".\n\nTrains pairs of runs, without and with the change, seed by seed, until the change is "
        "shown to help or to harm. The test may be looked at after every pair; it assumes normal "
        "differences. A run that diverged counts with the loss before its first step. The same "
        "command continues a trial that was stopped. The exit status is 0 where the change is "
        "better, 4 where it is worse, 5 where a difference of --smallest is ruled out, 3 where "
        "nothing is shown, 2 for a usage error.",
    )
    add_config(parser)
    # fmt: off
    parser.add_argument("--change", action="append", default=[], metavar="NAME=X",
                        help="a setting of the other side, such as optim.learning-rate=1e-3; may "
                        "be given several times")
    parser.add_argument("--out", metavar="FOLDER", help="the trial's folder")
    parser.add_argument("--alpha", default=0.01, metavar="X",
                        type=lambda text: parse(text, float, "--alpha"),
                        help="chance of a verdict where the change makes no difference, at most "
                        "(default: 0.01)")
    parser.add_argument("--max-pairs", default=20, metavar="X",
                        type=lambda text: parse(text, int, "--max-pairs"),
                        help="at most this many pairs (default: 20)")
    parser.add_argument("--smallest", metavar="X",
                        type=lambda text: parse(text, float, "--smallest"),
                        help="also end when a difference of this many nats per token is ruled out")
    parser.add_argument("--unpaired", action="store_true",
                        help="give the two runs of a pair different seeds")
    parser.add_argument("--equal", metavar="WHAT",
                        help="give the change as many steps as spend what the baseline's do: "
                        "steps, tokens, flops or seconds (measured first)")
    parser.add_argument("--against", metavar="PATH",
                        help="another checkout of the code, as the change: each side is run by its "
                        "own code")
    parser.add_argument("--dry-run", action="store_true", help="show what would run, and end")
    parser.add_argument("--picture", metavar="FILE",
                        help="draw the differences and the interval after each pair, as .png or "
                        ".svg")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the result as JSON")
    form.add_argument("--markdown", action="store_true",
                      help="print the result as Markdown, for an issue or a paper")
    # fmt: on
    add_track(parser)
    add_debug(parser)
    add_settings(parser, config)
    values = vars(parser.parse(argv))
    names = ("change", "out", "alpha", "max_pairs", "smallest", "unpaired", "dry_run", "json")
    names += ("equal", "against", "track", "picture", "markdown")
    options = {name: values.pop(name) for name in names}
    del values["config"], values["debug"]
    if options["out"] is None:
        raise ConfigError("--out is missing: the folder of the trial, such as --out trials/lr")
    change = parse_change(options["change"])
    config, given = without_source_settings(config, values)
    if options["against"] is None:  # else each process asks for its own
        changed = override(config, batch_settings(change))
        least = min(config.train.micro_batch_size, changed.train.micro_batch_size)
        devices.request_cpu_devices(least, at_least=config.mesh.n_requested)
        if config.train.deterministic:
            devices.request_determinism()
    return _run(with_source_settings(config, given), change, options)


def parse_change(texts: list[str]) -> dict[str, Any]:
    """Returns {setting: value} of NAME=VALUE texts.

    Raises:
      ConfigError: there is no such setting, it is given twice, or the value has the wrong type.
    """
    change: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not equals:
            close = suggest(name, variable_settings())
            raise ConfigError(f"--change: {text!r} is not NAME=VALUE{close}")
        hint = changed_hint(name, "--change", begun=True)  # `check_question` knows whether it has
        if name in change:
            raise ConfigError(f"--change: {name} is given twice")
        change[name] = parse(value, hint, f"--change {name}")
    return change


def _run(config: Config, change: dict[str, Any], options: dict[str, Any]) -> int:
    from gpt_jax.experiments.curves import check_picture
    from gpt_jax.experiments.trial_checks import check_question, is_trial
    from gpt_jax.experiments.trials import plan_lines, trial
    from gpt_jax.training.trackers import check_trackers

    check_trackers(options["track"])
    if options["picture"] is not None:
        check_picture(options["picture"])
    asked = {
        "alpha": options["alpha"],
        "max_pairs": options["max_pairs"],
        "smallest": options["smallest"],
        "paired": not options["unpaired"],
        "equal": options["equal"],
        "against": options["against"],
    }
    if options["dry_run"]:
        question = check_question(config, change, **asked, begun=is_trial(options["out"]))
        lines = plan_lines(config, question, options["out"], options["max_pairs"])
        print("\n".join(map(visible, lines)))
        return 0
    from gpt_jax.report.page import write_page

    track = options["track"]
    found = trial(config, change, options["out"], **asked, progress=say, track=track)
    write_page(options["out"], quiet=options["json"] or options["markdown"])
    if options["picture"] is not None:
        say(f"picture: {found.plot(options['picture'])}")
    if options["json"]:
        print(json.dumps(found.record(), indent=1))
    else:
        print(visible(found.markdown() if options["markdown"] else found))
    return found.status
