"""`python main.py sample`: generates text with a trained model, and streams it."""

from __future__ import annotations

import dataclasses
import secrets
import sys
from collections.abc import Iterator

from gpt_jax import devices
from gpt_jax.cli.options import add_settings
from gpt_jax.cli.parsers import add_mesh, given_mesh, run_folder, run_parser
from gpt_jax.config import SampleConfig
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.terminal import for_stream, say


def command(argv: list[str]) -> int:
    parser = run_parser(
        "sample",
        "\n\nText appears as it is generated. `--prompt -` reads the prompt from standard input "
        "(a line break at its end is dropped). An empty prompt starts from a line break.",
    )
    add_settings(parser, SampleConfig(), default="the run's")
    parser.add_argument(
        "--seed",
        type=int,
        metavar="X",
        help="random seed of the samples (default: drawn anew, and printed to standard error)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be given several times. A text also ends at the "
        "tokenizer's end-of-text token (default: none)",
    )
    parser.add_argument(
        "--special",
        action="store_true",
        help="special tokens in the prompt, such as <|endoftext|>, are tokens, not text",
    )
    parser.add_argument(
        "--interactive",
        action="store_true",
        help="read a prompt, continue it, read the next, until an empty line or Ctrl-D",
    )
    add_mesh(parser)
    values = vars(parser.parse(argv))
    mesh = given_mesh(values)
    stop, special, interactive = (values.pop(name) for name in ("stop", "special", "interactive"))
    folder, seed = [values.pop(name) for name in ("run_dir", "init_from")], values.pop("seed")
    which = values.pop("checkpoint")
    del values["debug"]
    if seed is not None and not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed} must be a whole number in [0, 2**32)")
    is_drawn = seed is None
    seed = secrets.randbelow(2**32) if seed is None else seed
    if interactive and "prompt" in values:
        raise ConfigError("--interactive reads its prompts; leave --prompt out")
    if "" in stop:
        raise ConfigError("--stop is empty; give the text before which to end")
    SampleConfig(**values)  # a value that breaks a rule is found before jax is imported

    devices.request_cpu_devices(1, at_least=mesh.n_requested if mesh else 1)
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
    run = load_run(run_dir, which, mesh=mesh)

    def show(prompt: str, seed: int) -> None:
        if not prompt:
            say("note: the prompt is empty; starting from a line break")
        first = True
        texts: list[str] = []
        for pieces in stream(run, prompt, chosen, seed=seed, stop=stop, special=special):
            if first:
                _write(prompt)
                texts, first = [prompt] * len(pieces), False
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
            _write(pieces[0])
            sys.stdout.flush()
        print()
        for number, text in enumerate(texts[1:], 2):
            _write(f"\n--- {number} ---\n{text}\n")
        sys.stdout.flush()

    if not interactive:
        show(prompt, seed)
        if is_drawn:
            say(f"seed {seed} (--seed {seed} writes this text again)")
        return 0
    for number, typed in enumerate(_typed_prompts()):
        try:
            show(typed, (seed + number) % 2**32)
        except UserError as error:  # what the tokenizer can't encode: type another
            say(f"error: {error}")
    return 0


def _typed_prompts() -> Iterator[str]:
    """Yields lines of standard input until an empty one or its end; a terminal shows "> "."""
    if sys.stdin is None:
        raise UserError("standard input is closed, and --interactive reads prompts from it")
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = _decode(sys.stdin.buffer.readline())
        if not line:
            return
        yield line


def _write(text: str) -> None:
    """Writes generated text: as it is, and on a terminal without its control characters."""
    sys.stdout.write(for_stream(text, sys.stdout))


def _read_prompt() -> str:
    """Returns standard input, without a line break at its end."""
    if sys.stdin is None:
        raise UserError("standard input is closed, and --prompt - reads the prompt from it")
    return _decode(sys.stdin.buffer.read())


def _decode(raw: bytes) -> str:
    try:
        prompt = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"the prompt from standard input is not UTF-8 (byte {byte:#04x} at {error.start}); "
            "convert it, for example with: iconv -f latin1 -t utf-8"
        ) from None
    return prompt.removesuffix("\n").removesuffix("\r")
