"""`python main.py eval`: evaluates a trained model on a whole split, each token once."""

from __future__ import annotations

import json

from gpt_jax import devices
from gpt_jax.cli.parsers import add_mesh, given_mesh, run_folder, run_parser
from gpt_jax.terminal import visible


def command(argv: list[str]) -> int:
    parser = run_parser("eval")
    # fmt: off
    parser.add_argument("--split", choices=("val", "train"), default="val",
                        help="split of the corpus: val or train (default: val)")
    parser.add_argument("--stride", type=int, metavar="X",
                        help="tokens between the starts of windows; a smaller stride gives each "
                        "prediction more context (default: block_size)")
    parser.add_argument("--data.corpus", dest="corpus", metavar="X",
                        help="where the run's corpus is now (default: where it was in training)")
    parser.add_argument("--max-tokens", type=int, metavar="X",
                        help="evaluate at most this many tokens of each corpus, the first of the "
                        "split (default: all)")
    # fmt: on
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_mesh(parser)
    args = parser.parse(argv)
    mesh = given_mesh(vars(args))

    devices.request_cpu_devices(8, at_least=mesh.n_requested if mesh else 1)
    from gpt_jax.inference.evaluation import evaluate
    from gpt_jax.run.load import load_run

    run_dir = run_folder(args.run_dir, args.init_from)
    run = load_run(run_dir, args.checkpoint, mesh=mesh)
    evaluation = evaluate(
        run,
        split=args.split,
        stride=args.stride,
        corpus=args.corpus,
        max_tokens=args.max_tokens,
    )
    corpus = run.corpus or {"name": args.corpus}
    if args.json:
        record = {
            "run_dir": str(run.run_dir),
            "step": run.step,
            "split": args.split,
            "corpus": corpus,
            **evaluation.record(),
        }
        print(json.dumps(record, indent=2))
    else:
        where = f"{run.run_dir}, step {run.step}, {args.split} split of {corpus['name']}:"
        print(visible(where))
        print(evaluation)
    return 0
