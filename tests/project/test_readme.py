"""The README's commands, code and tables are what it says they are."""

import contextlib
import io
import json
import re
import shlex
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT

import main
from benchmarks import tables
from gpt_jax import hf
from gpt_jax.config import ModelConfig
from gpt_jax.hf import tokenizer as hf_tokenizer
from gpt_jax.model import GPT
from gpt_jax.tokenizer import GPT2_PATTERN, BpeTokenizer

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.partition("   #")[0].strip()
    for language, block in BLOCKS
    if language != "python"
    for line in block.splitlines()
    if "python main.py" in line
]
# fmt: off
SMALL = [
    "--model.n-layer", "1", "--model.n-embd", "16", "--model.n-head", "2",
    "--model.block-size", "8", "--train.batch-size", "4", "--train.steps", "4",
    "--train.eval-interval", "4",
    "--train.eval-batches", "1", "--train.checkpoint-interval", "4",
]
# fmt: on


def save_tiny_gpt2(folder):
    """A GPT-2 folder of the sizes in SMALL, whose tokens are bytes."""
    config = ModelConfig(
        n_layer=1, n_embd=16, n_head=2, block_size=8, vocab_size=256, activation="gelu",
        head_bias=False, tied=True,
    )  # fmt: skip
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    shapes = jax.eval_shape(GPT(config).init, jax.random.key(0), tokens)["params"]
    hf.save(folder, config, jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes))
    tokenizer = BpeTokenizer([bytes([b]) for b in range(256)], GPT2_PATTERN, {})
    hf_tokenizer.save_tokenizer(folder, tokenizer, 8)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder without a network, with a book where the README has one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT_JAX_OZ_URL", "http://127.0.0.1:9/pg55.txt")
    monkeypatch.setenv("GPT_JAX_DATA", str(tmp_path / "texts"))
    (tmp_path / "texts").mkdir()
    book = "The Great Wizard said to Dorothy and Toto: go on, Dorothy!\n" * 60
    (tmp_path / "texts" / "wizard_of_oz.txt").write_text(book, encoding="utf-8")
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "book.txt").write_text(book, encoding="utf-8")
    save_tiny_gpt2(tmp_path / "gpt2")
    return tmp_path


def test_every_command_of_the_readme_does_its_job(elsewhere, monkeypatch):
    """In the README's order; training is made small, the rest is as written."""
    assert len(COMMANDS) >= 13
    for command in COMMANDS:
        words = shlex.split(command.rpartition("python main.py")[2])
        words = words[: words.index("#")] if "#" in words else words
        if command.startswith("echo"):
            text = shlex.split(command)[1] + "\n"
            stdin = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8")
            monkeypatch.setattr(sys, "stdin", stdin)
        if words[0] == "verify":  # has a test of its own
            continue
        if words[0] == "replay":
            words[words.index("--step") + 1] = "3"
        if words[0] not in ("sample", "eval", "export", "replay", "--help"):
            words += SMALL
            folder = elsewhere / "runs"
            if words[:2] == ["--config", "nano"] and "--run-dir" not in words and folder.exists():
                continue  # the same job again, on another device
        if words[0] == "sample":
            words += ["--max-new-tokens", "5"]
        try:
            status = main.main(words)
        except SystemExit as done:
            status = done.code
        assert status == 0, command


@pytest.mark.slow
def test_the_python_of_the_readme_runs(elsewhere, capsys):
    code = next(block for language, block in BLOCKS if language == "python")
    short = code.replace('"train.steps": 100', '"train.steps": 10, "train.eval_batches": 2')
    assert short != code
    values = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(short, values)
    assert "Dorothy " in out.getvalue()
    assert values["logits"].shape == (1, 4, values["run"].tokenizer.vocab_size)


def test_the_tables_are_made_from_the_result_files():
    pages = [page.read_text("utf-8") for page in tables.PAGES]
    for text in pages:
        assert tables.render(text) == text, "run: python benchmarks/tables.py"
    for name, (result, _) in tables.TABLES.items():
        shown = any(f"<!-- {name}: begin -->" in text for text in pages)
        assert shown == (tables.RESULTS / result).exists(), name


def test_the_headers_of_nano_and_its_original_have_the_results():
    losses = json.loads((tables.RESULTS / "reproduce.json").read_text("utf-8"))["configs"]
    seconds = json.loads((tables.RESULTS / "speed_cpu.json").read_text("utf-8"))["whole_command"]
    nano, original = (
        (ROOT / "configs" / f"{name}.py").read_text("utf-8") for name in ("nano", "nano_original")
    )
    at = [(nano, "nano", 500), (original, "nano_original", 450), (original, "nano_original", 500)]
    for text, name, step in at:
        assert f"{losses[name]['val'][str(step)]['mean']:.3f}" in text
    for way in ("cold", "warm"):
        assert f"{seconds[f'gpt_jax, {way}']['seconds']:.0f} s" in nano


def test_the_files_that_the_readme_names_exist():
    for target in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / target).exists(), target
