"""`python main.py report`: one HTML file that shows runs, and computes with their model."""

from __future__ import annotations

from gpt_jax.cli.parsers import add_debug, verb_parser
from gpt_jax.config.fields import parse
from gpt_jax.errors import ConfigError
from gpt_jax.terminal import say, visible


def command(argv: list[str]) -> int:
    parser = verb_parser(
        "report",
        "RUN_OR_SWEEP [MORE ...] [--out page.html] [...]",
        ".\n\nEach name is the folder of a run, a sweep or a trial, or a quoted pattern such as "
        "'runs/base-*'. The page needs no network and no server: open it in a browser, or send it. "
        "Two sides are compared, the first as the baseline. Make it again while a run goes on.",
    )
    # fmt: off
    parser.add_argument("runs", nargs="*", metavar="RUN_OR_SWEEP", help="what is shown")
    parser.add_argument("--out", metavar="FILE",
                        help="the page (default: report.html in the first folder)")
    parser.add_argument("--metric", default="final", metavar="X",
                        help="by which they are compared; see compare --help (default: final)")
    parser.add_argument("--max-parameters", default=2_000_000, metavar="X",
                        type=lambda text: parse(text, int, "--max-parameters"),
                        help="the page computes with models of up to so many parameters "
                        "(default: 2000000)")
    # fmt: on
    add_debug(parser)
    args = parser.parse(argv)
    if not args.runs:
        raise ConfigError("nothing to report: name the folder of a run, a sweep or a trial")

    from gpt_jax.report.page import make_report

    made = make_report(args.runs, args.out, metric=args.metric, max_parameters=args.max_parameters)
    for note in made.notes:
        say(f"note: {note}")
    print(visible(f"page: {made.path} ({len(made.text) / 1e6:.1f} MB)"))
    return 0
