"""`python main.py verify`: checks the project's guarantees on this machine."""

from __future__ import annotations

import dataclasses
import json

from gpt_jax import devices
from gpt_jax.cli.parsers import add_debug, verb_parser


def command(argv: list[str]) -> int:
    parser = verb_parser(
        "verify",
        "[--json]",
        ", with small models in a temporary folder; takes a minute or two. The exit status is 1 "
        "if a check fails.",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_debug(parser)
    args = parser.parse(argv)

    devices.request_cpu_devices(8, at_least=8)
    import jax

    from gpt_jax.analysis.verify import verify

    if not args.json:
        print(f"{len(jax.devices())} x {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
        print(f"{'':<6} {'largest difference':>18} {'allowed':>8} {'s':>5}  check")
    results = []
    for result in verify():
        results.append(result)
        if not args.json:
            note = f" ({result.note})" if result.note else ""
            print(
                f"{'pass' if result.passed else 'FAIL':<6} {result.difference:>18.3g} "
                f"{result.allowed:>8.1g} {result.seconds:>5.1f}  {result.promise}{note}",
                flush=True,
            )
    if args.json:
        rows = [dataclasses.asdict(result) | {"passed": result.passed} for result in results]
        print(json.dumps(rows, indent=1))
    failed = sum(not result.passed for result in results)
    if not args.json:
        print(f"\n{failed} of {len(results)} FAILED" if failed else f"\nall {len(results)} pass")
    return 1 if failed else 0
