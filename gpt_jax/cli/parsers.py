"""What the parsers of several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_jax.cli import VERBS
from gpt_jax.cli.options import Parser
from gpt_jax.config import MeshConfig
from gpt_jax.config.fields import parse
from gpt_jax.storage import to_folder
from gpt_jax.terminal import program


def verb_parser(verb: str, options: str, more: str = "") -> Parser:
    """Returns a verb's parser, with a usage line, its line in VERBS and `more` as its help."""
    return Parser(
        prog=f"{program()} {verb}",
        usage=f"{program()} {verb} {options}",
        description=VERBS[verb][0].upper() + VERBS[verb][1:] + more,
    )


def run_parser(verb: str, more: str = "") -> Parser:
    """Returns the parser of a verb that loads a run or a GPT-2 folder; see `run_folder`."""
    parser = verb_parser(verb, "--run-dir FOLDER [...]", "." + more)
    folder = parser.add_mutually_exclusive_group()
    add_run_dir(folder, "the run's folder, or a GPT-2 folder")
    # fmt: off
    folder.add_argument("--init-from", metavar="X", help="instead of --run-dir: a folder, or a "
                        "model on Hugging Face's hub, such as openai-community/gpt2")
    parser.add_argument("--checkpoint", type=_checkpoint, default="newest", metavar="X",
                        help="newest, best (lowest validation loss) or a "
                        "step (default: newest)")
    # fmt: on
    add_debug(parser)
    return parser


def add_mesh(parser: Parser) -> None:
    """Adds the options of `given_mesh`."""
    for axis, name in (("fsdp", "fully sharded"), ("tensor", "tensor parallel")):
        option = f"--mesh.{axis}"
        parser.add_argument(
            option,
            dest=f"mesh.{axis}",
            type=lambda text, option=option: parse(text, int, option),
            metavar="X",
            help=f"{name}: devices that each hold a share of the parameters "
            "(default: as in training, if there are as many)",
        )


def given_mesh(values: dict[str, Any]) -> MeshConfig | None:
    """Takes the options of `add_mesh` out of `values`; None where none is given."""
    sizes = {axis: values.pop(f"mesh.{axis}") for axis in ("fsdp", "tensor")}
    if set(sizes.values()) == {None}:
        return None
    return MeshConfig(**{axis: 1 if size is None else size for axis, size in sizes.items()})


def _checkpoint(text: str) -> str | int:
    if text in ("newest", "best"):
        return text
    return parse(text, int, "--checkpoint, if neither newest nor best,")


def run_folder(run_dir: Path, init_from: str | None) -> Path:
    """Returns the folder that the options of `run_parser` name."""
    from gpt_jax.hf import find

    return run_dir if init_from is None else find(init_from)


def add_run_dir(options: argparse._ActionsContainer, what: str) -> None:
    options.add_argument("--run-dir", type=to_folder, default="runs/nano", metavar="FOLDER",
                         help=f"{what} (default: runs/nano)")  # fmt: skip


def add_debug(parser: Parser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_track(parser: Parser) -> None:
    parser.add_argument("--track", metavar="NAME", action="append", default=[],
                        help="also log to wandb or trackio; may be given for each")  # fmt: skip


def add_config(parser: Parser) -> None:
    what = "name from configs/, or path of a Python file (default: nano)"
    parser.add_argument("--config", metavar="NAME", help=what)


def named_config(verb: str, argv: list[str]) -> str:
    """Returns the --config of a command line, which is read first: it has the options' defaults."""
    parser = Parser(add_help=False, prog=f"{program()} {verb}")
    parser.add_argument("--config", default="nano")
    return parser.parse_known_args(argv)[0].config


def batch_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what dotted settings say of the batch, which decides the number of CPU devices."""
    names = ("train.batch_size", "train.micro_batch")
    return {name: values[name] for name in names if name in values}
