"""`python main.py sample`: generates text with a trained model, and streams it."""

from __future__ import annotations

import dataclasses
import sys

from gpt_jax import devices
from gpt_jax.cli.options import add_settings
from gpt_jax.cli.parsers import run_folder, run_parser
from gpt_jax.config import SampleConfig
from gpt_jax.errors import ConfigError, UserError


def command(argv: list[str]) -> int:
    parser = run_parser(
        "sample",
        "\n\nText appears as it is generated. `--prompt -` reads the prompt from standard input "
        "(a line break at its end is dropped). An empty prompt starts from a line break.",
    )
    add_settings(parser, SampleConfig(), default="the run's")
    parser.add_argument(
        "--seed", type=int, metavar="X", help="random seed of the samples (default: the run's)"
    )
    values = vars(parser.parse(argv))
    folder, seed = [values.pop(name) for name in ("run_dir", "init_from")], values.pop("seed")
    which = values.pop("checkpoint")
    del values["debug"]
    if seed is not None and not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed} must be a whole number in [0, 2**32)")
    SampleConfig(**values)  # a value that breaks a rule is found before jax is imported

    devices.request_cpu_devices(1)
    from gpt_jax.inference.generation import stream
    from gpt_jax.run.folder import read_config
    from gpt_jax.run.load import load_run

    run_dir = run_folder(*folder)
    config, _ = read_config(run_dir)
    chosen = dataclasses.replace(config.sample, **values)
    prompt = values.get("prompt")
    if prompt == "-":
        prompt = _read_prompt()
    elif prompt is None:
        prompt = chosen.prompt or ""
    run = load_run(run_dir, which)
    if not prompt:
        print("note: the prompt is empty; starting from a line break", file=sys.stderr)
    first = True
    texts: list[str] = []
    for pieces in stream(run, prompt, chosen, seed=seed):
        if first:
            sys.stdout.write(prompt)
            texts, first = [prompt] * len(pieces), False
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        sys.stdout.write(pieces[0])
        sys.stdout.flush()
    print()
    for number, text in enumerate(texts[1:], 2):
        print(f"\n--- {number} ---\n{text}")
    return 0


def _read_prompt() -> str:
    """Returns standard input, without a line break at its end."""
    try:
        prompt = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"the prompt from standard input is not UTF-8 (byte {byte:#04x} at {error.start}); "
            "convert it, for example with: iconv -f latin1 -t utf-8"
        ) from None
    return prompt.removesuffix("\n").removesuffix("\r")
