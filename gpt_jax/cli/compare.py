"""`python main.py compare`: two sides, or the settings of a sweep; is one better?"""

from __future__ import annotations

import json

from gpt_jax.cli.parsers import add_debug, verb_parser
from gpt_jax.config.fields import parse
from gpt_jax.errors import ConfigError
from gpt_jax.terminal import say, shell_command, visible


def command(argv: list[str]) -> int:
    parser = verb_parser(
        "compare",
        "A [B] [--metric X] [...]",
        ".\n\nA is the baseline and B what is judged: each the folder of a run, a quoted pattern "
        "such as 'runs/base-*', or a sweep of seeds. A alone is a sweep, whose settings are "
        "compared with the first. Runs with equal seeds and the same batches are paired. The exit "
        "status is 0 where B is better, 4 where it is worse, 3 where neither is shown, 2 for a "
        "usage error.",
    )
    # fmt: off
    parser.add_argument("sides", nargs="*", metavar="A B", help="what is compared")
    parser.add_argument("--metric", default="final", metavar="X",
                        help="final (exact validation loss after the last step), best (lowest "
                        "validation loss), bpb (bits per byte), val@STEP, steps-to:LOSS, "
                        "seconds-to:LOSS or tokens/s (default: final)")
    parser.add_argument("--alpha", default=0.05, metavar="X",
                        type=lambda text: parse(text, float, "--alpha"),
                        help="below which a p is a verdict (default: 0.05)")
    parser.add_argument("--smallest", metavar="X",
                        type=lambda text: parse(text, float, "--smallest"),
                        help="the least difference that matters: how many more pairs would show "
                        "it (default: the one seen)")
    parser.add_argument("--baseline", metavar="NAME=X",
                        help="with a sweep: the setting that the others are compared with "
                        "(default: its first)")
    parser.add_argument("--picture", metavar="FILE",
                        help="draw the curves and their difference, with bands, as .png or .svg")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the result as JSON")
    form.add_argument("--markdown", action="store_true",
                      help="print the result as Markdown, for an issue or a paper")
    # fmt: on
    add_debug(parser)
    args = parser.parse(argv)
    if not args.sides:
        raise ConfigError("nothing to compare: name two runs, two quoted patterns, or a sweep")
    if len(args.sides) > 2:
        quoted = shell_command("compare", "runs/base-*", "runs/change-*")
        raise ConfigError(
            f"compare takes two sides, not {len(args.sides)} names; quote the patterns: {quoted}"
        )

    from gpt_jax.experiments.comparison import compare
    from gpt_jax.experiments.curves import check_picture

    if args.picture is not None:
        check_picture(args.picture)
    found = compare(
        *args.sides,
        metric=args.metric,
        alpha=args.alpha,
        smallest=args.smallest,
        baseline=args.baseline,
    )
    if args.picture is not None:
        say(f"picture: {found.plot(args.picture)}")
    if args.json:
        print(json.dumps(found.record(), indent=1))
    else:
        print(visible(found.markdown() if args.markdown else found))
    return found.status
