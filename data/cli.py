"""`python main.py prepare`: tokenizes texts of any size into token shards, or verifies some."""

from __future__ import annotations

import os

from data.config import PrepareConfig
from gpt_jax.cli.options import Parser, add_settings
from gpt_jax.cli.parsers import add_debug
from gpt_jax.errors import ConfigError
from gpt_jax.terminal import program, visible


def command(argv: list[str]) -> int:
    parser = Parser(
        prog=f"{program()} prepare",
        usage=f"{program()} prepare --source S --input PATTERN --out FOLDER [...]",
        description="Tokenize a source of text into token shards on disk, on which --data.corpus "
        "FOLDER trains. Run the same command again to resume an interrupted preparation. "
        "data/README.md has recipes.",
    )
    add_settings(parser, PrepareConfig(input="required", out="required"))
    parser.add_argument("--verify", metavar="FOLDER",
                        help="only verify every byte of a prepared corpus")  # fmt: skip
    add_debug(parser)
    values = vars(parser.parse(argv))
    folder = values.pop("verify")
    del values["debug"]
    if folder is not None:
        if values:
            raise ConfigError(f"--verify {folder} takes no other setting")
        return _verify(os.path.expanduser(folder))
    config = PrepareConfig(**values)

    from data.prepare import prepare
    from data.records import read_counts

    manifest = prepare(config)
    if manifest is None:
        return 0
    for split, total in manifest.totals.items():
        print(
            f"{split:<5} {total.tokens:>16,} tokens {total.bytes:>17,} bytes "
            f"{total.documents:>12,} documents {len(manifest.entries(split)):>6,} shards"
        )
    counts = read_counts(manifest, config.out)
    dropped = "".join(f", {n:,} {name}" for name, n in counts.dropped.items())
    print(
        f"{counts.read:,} documents read, {counts.kept:,} kept{dropped}; damaged and left "
        f"out: {counts.damaged_files:,} files, {counts.damaged_records:,} records"
    )
    return 0


def _verify(folder: str) -> int:
    from gpt_jax.console import Display, WorkProgress
    from gpt_jax.input_pipeline.shards.reader import open_shards, verify_shards

    display = Display()
    prepared = open_shards(folder)
    for note in prepared.notes:
        display.note(note)
    progress = WorkProgress(display, 0, sum(prepared.n_tokens.values()))
    try:
        tokens = verify_shards(prepared, lambda done, _: progress.update(done, f"{done:,} tokens"))
    finally:
        display.stop()
    what = "sums, ids and bytes" if prepared.manifest else "ids"
    shown = " and ".join(f"{n:,} tokens for {split}" for split, n in tokens.items())
    print(visible(f"{folder} is sound ({prepared.kind}, {what}): {shown}"))
    return 0
