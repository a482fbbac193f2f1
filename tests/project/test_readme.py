"""The commands, code, tables and links of README.md and docs/ are what they say they are."""

import contextlib
import io
import json
import os
import re
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT
from fake_runs import write_side, write_sweep

import main
from benchmarks import tables
from gpt_jax import hf
from gpt_jax.cli import VERBS
from gpt_jax.config import ModelConfig
from gpt_jax.hf import tokenizer as hf_tokenizer
from gpt_jax.model import GPT
from gpt_jax.tokenizer import GPT2_PATTERN, BpeTokenizer

README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *GUIDES, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]
OTHERS = [ROOT / "data" / "README.md", ROOT / "benchmarks" / "gpu" / "README.md"]
TEXTS_PAGE = ROOT / "docs" / "texts-and-tokenizers.md"  # its code runs before its commands
TEXTS = {page: page.read_text("utf-8") for page in [*PAGES, *OTHERS]}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
# What a newcomer searches for, and the page that explains it.
WORDS = {
    "models-and-options": [
        "RoPE", "rotary position embedding", "GQA", "grouped-query attention", "weight tying",
        "gradient accumulation", "mixed precision", "activation checkpointing", "flash attention",
        "gradient clipping", "learning-rate schedule", "SwiGLU", "RMSNorm",
    ],
    "devices-and-hosts": [
        "data parallel", "fully sharded", "FSDP", "tensor parallel", "sequence parallel", "Slurm",
    ],
    "reliability": ["resume", "checkpoint", "divergence", "exit status"],
    "gpt2": ["fine-tune", "safetensors", "transformers"],
    "texts-and-tokenizers": ["byte-pair encoding", "bits per byte", "mixture", "token shards"],
    "planning": ["all-gather", "reduce-scatter", "all-reduce", "lower bound"],
    "python-api": ["logits"],
    "experiments": ["p value", "paired", "seeds", "confidence", "exit status", "Holm"],
}  # fmt: skip
JUDGES = ("compare", "trial")  # whose exit statuses are verdicts
# fmt: off
SMALL = [
    "--model.n-layer", "1", "--model.n-embd", "16", "--model.n-head", "2",
    "--model.block-size", "8", "--train.batch-size", "8", "--train.steps", "4",
    "--train.eval-interval", "4",
    "--train.eval-batches", "1", "--train.checkpoint-interval", "4", "--model.dropout", "0",
]
# fmt: on


def blocks(page: Path, python: bool) -> list[str]:
    """The page's fenced blocks: of Python, or all others."""
    found = BLOCK.findall(TEXTS[page])
    return [text for language, text in found if (language == "python") == python]


def commands(page: Path) -> list[str]:
    """The page's lines that call main.py, in order, without their comments."""
    return [
        line.partition("   #")[0].strip()
        for block in blocks(page, python=False)
        for line in block.splitlines()
        if "python main.py" in line
    ]


def words_of(command: str) -> list[str]:
    """The arguments of a command."""
    return shlex.split(command.rpartition("python main.py")[2])


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
    """An empty folder without a network, with a book where the pages have one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT_JAX_OZ_URL", "http://127.0.0.1:9/pg55.txt")
    monkeypatch.setenv("GPT_JAX_DATA", str(tmp_path / "texts"))
    (tmp_path / "texts").mkdir()
    book = "The Great Wizard said to Dorothy and Toto: go on, Dorothy!\n" * 60 + TEXTS[README]
    (tmp_path / "my").mkdir()
    for name in ("texts/wizard_of_oz.txt", "my/book.txt"):  # one text: its programs serve twice
        (tmp_path / name).write_text(book, encoding="utf-8")
    save_tiny_gpt2(tmp_path / "gpt2")
    rate = {"optim.learning_rate": 1e-3}
    write_side("runs/base", [1.95, 1.97, 1.93])
    write_side("runs/change", [1.93, 1.94, 1.92], settings=rate)
    write_sweep("sweeps/lr", [(v, seed, 2 - seed / 9) for v in ({}, rate) for seed in range(2)])
    return tmp_path


def without(words: list[str], *options: str) -> list[str]:
    """Returns the words without some options and their values."""
    found = [i for i, word in enumerate(words) if word in options]
    return [word for i, word in enumerate(words) if i not in found and i - 1 not in found]


def made_small(words: list[str]) -> list[str] | None:
    """Returns a command's arguments with less to compute; None where another test runs it."""
    verb = words[0] if words[0] in VERBS else "train"
    if verb == "verify" or "--topology" in words:  # tests/analysis and tests/tpu have these
        return None
    if verb == "sweep":
        return [*words, *SMALL, "--dry-run", "--out", "sweeps/other"]  # `compare` reads that one
    if verb == "replay":
        return [*words[: words.index("--step") + 1], "3"]
    if verb == "sample":
        return [*words, "--max-new-tokens", "5"]
    if verb == "trial":
        one = ["--mesh.data", "1", "--sample.max-new-tokens", "5", "--max-pairs", "1"]
        return [*words, *SMALL, *one]
    if "--branch-from" in words:
        ends = ["--train.steps", "4", "--sample.max-new-tokens", "5"]
        return [*without(words, "--at-step"), "--at-step", "3", *ends]
    if verb == "train" and words != ["--help"]:
        one = [] if "--mesh.data" in words else ["--mesh.data", "1"]  # it compiles faster
        return [*words, *SMALL, *one, "--sample.max-new-tokens", "5"]
    return [*words, *SMALL] if verb == "plan" else words


@pytest.mark.slow
def test_every_command_of_the_pages_does_its_job(elsewhere, monkeypatch):
    """In the pages' order, in one folder; training is made small, the rest is as written."""
    for code in blocks(TEXTS_PAGE, python=True):  # it writes a corpus that commands train on
        exec(code, {})
    done: list[list[str]] = []
    for command in [command for page in PAGES for command in commands(page)]:
        words = words_of(command)
        small = made_small(words)
        job = tuple(without(words, "--train.steps", "--train.eval-interval", "--run-dir"))
        first_again = job == ("--config", "nano") and "nano" in os.listdir("runs")
        if small is None or words in done or first_again:
            continue  # the same job again: on another page, on another device, with more steps
        done.append(words)
        if command.startswith("echo"):
            text = shlex.split(command)[1] + "\n"
            stdin = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8")
            monkeypatch.setattr(sys, "stdin", stdin)
        try:
            status = main.main(small)
        except SystemExit as left:
            status = left.code
        assert status == 0 or (words[0] in JUDGES and status in (3, 4)), command
    assert len(done) >= 18


@pytest.mark.slow
def test_the_python_of_the_pages_runs(elsewhere):
    """The README's code is the beginning of that of the Python page, which is run."""
    (code,) = blocks(ROOT / "docs" / "python-api.md", python=True)
    (beginning,) = blocks(README, python=True)
    assert code.startswith(beginning)
    others = [page for page in GUIDES if page.stem != "python-api" and blocks(page, python=True)]
    assert others == [TEXTS_PAGE]
    small = '"train.steps": 10, "train.eval_batches": 2, "model.n_layer": 1, "model.n_embd": 32'
    short = code.replace('"train.steps": 100', small)
    assert short != code
    values = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(short, values)
    assert out.getvalue().count("Dorothy ") >= 1
    assert values["logits"].shape == (1, 4, values["run"].tokenizer.vocab_size)
    assert values["inside"].residual.shape == (2, 4, 32)
    assert values["evaluation"].is_whole


def test_the_commands_beside_main_are_there():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for page in PAGES:
        for script in re.findall(r"python (benchmarks/\S+\.py)", TEXTS[page]):
            assert (ROOT / script).is_file(), f"{page}: {script}"
        for name in re.findall(r"pip install -r ([\w./-]+\.txt)", TEXTS[page]):
            assert (ROOT / name).is_file(), f"{page}: {name}"
        for target in re.findall(r"[`|] ?`?make (?:PYTHON=\S+ )?([a-z-]+)", TEXTS[page]):
            assert target in targets, f"{page}: make {target}"


def test_every_option_that_the_pages_name_is_one_of_the_command_line(capsys):
    known = {"--local-dir"}  # of hf
    for verb in VERBS:
        with pytest.raises(SystemExit):
            main.main([verb, "--help"])
        known |= set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    others = (
        r"`(?:srun|gcloud|mpirun)[^`]*?python main.py|pip install[^`\n]*|python benchmarks[^`]*"
    )
    for page in [README, *GUIDES]:
        if page.stem == "change-one-thing":  # its options are those that it adds
            continue
        named = re.findall(r"(?<![\w-])--[a-z][\w.-]*", re.sub(others, "", TEXTS[page]))
        assert not {name.rstrip(".") for name in named} - known, page


def test_the_blocks_are_made_from_the_result_files():
    for page in tables.PAGES:
        assert tables.render(TEXTS[page]) == TEXTS[page], "run: python benchmarks/tables.py"
    notebook = tables.NOTEBOOK.read_text("utf-8")
    assert tables.render_notebook(notebook) == notebook, "run: python benchmarks/tables.py"
    for name, (result, _) in tables.TABLES.items():
        assert any(f"<!-- {name}: begin -->" in TEXTS[page] for page in tables.PAGES), name
        assert (tables.RESULTS / result).exists()


@pytest.mark.parametrize("known", [False, True])
def test_the_projects_address_is_one_setting(known, tmp_path, monkeypatch):
    """Without it there is no badge, and a clone is the reader's affair."""
    url = "https://github.com/somebody/gpt_jax"
    text = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.urls]")[0]
    text += f'[project.urls]\nRepository = "{url}.git"\n' if known else ""
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(tables, "PYPROJECT", tmp_path / "pyproject.toml")
    readme = tables.render(TEXTS[README])
    notebook = json.loads(tables.render_notebook(tables.NOTEBOOK.read_text("utf-8")))
    source = "".join("".join(cell["source"]) for cell in notebook["cells"])
    badge = "colab.research.google.com/github/somebody/gpt_jax/blob/main/notebooks/colab.ipynb"
    assert (badge in readme) == known
    assert (f"git clone {url} && cd gpt_jax" in readme) == known
    assert (f'REPOSITORY = "{url}"' in source) == known
    assert ("badge" in readme) == known
    assert (badge in source) == known
    assert ("Open in Colab" in source) == known
    assert ('REPOSITORY = ""' in source) == (not known)


def test_the_badge_needs_an_address_at_github(monkeypatch):
    monkeypatch.setattr(tables, "address", lambda: "https://example.org/gpt_jax")
    assert "badge" not in tables.colab()
    assert tables.badge() == ""
    assert "git clone https://example.org/gpt_jax && cd gpt_jax" in tables.clone()


def test_the_notebook_claims_no_time_that_nobody_measured(monkeypatch):
    """Where a time was measured it says where; else there is a bound, marked as one, or nothing."""
    rows = [line for line in tables.runtimes().splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0] for row in rows] == ["| CPU", "| T4", "| L4", "| A100", "| TPU v5e"]
    seconds = json.loads((tables.RESULTS / "nano_5000.json").read_text("utf-8"))["seconds"]
    assert f"| {seconds['training'] / 60:.1f} minutes, and " in rows[0]
    assert "measured on 2 cores (AMD EPYC); Colab's not measured | not measured |" in rows[0]
    for row in rows[1:]:
        for cell in row.strip("| ").split(" | ")[1:]:
            assert re.fullmatch(r"not measured(; bound: at least [\d.]+ (s|minutes))?", cell)
    plans = json.loads((tables.RESULTS / tables.GPU_PLANS).read_text("utf-8"))["plans"]
    t4 = plans["python main.py plan --config nano --topology t4:1"]["kernel_seconds"]
    assert f"not measured; bound: at least {5000 * t4:.1f} s |" in rows[1]
    known = tables.load
    monkeypatch.setattr(tables, "load", lambda x: known(x) | ({"plans": {}} if "gpu" in x else {}))
    assert "| T4 | not measured | not measured |" in tables.runtimes()


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


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), flags=re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text("utf-8")), f"{page}: {target}"


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(TEXTS[README]) <= 12_000
    for page in [*GUIDES, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]:
        assert f"]({page.relative_to(ROOT)})" in TEXTS[README], page


def test_the_two_commands_are_at_the_top():
    install = "pip install -r requirements.txt && python main.py --config nano\n"
    test = "pip install -r requirements-test.txt && python -m pytest\n"
    assert 0 < TEXTS[README].index(install) < TEXTS[README].index(test) < 2_000


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_every_page_opens_with_the_questions_it_answers(page):
    title, _, rest = TEXTS[page].partition("\n\n")
    assert re.fullmatch(r"# .+", title)
    assert "?" in rest.partition("\n\n")[0]


@pytest.mark.parametrize(("page", "word"), [(page, word) for page in WORDS for word in WORDS[page]])
def test_a_newcomers_words_are_where_they_belong(page, word):
    assert word.lower() in TEXTS[ROOT / "docs" / f"{page}.md"].lower()
