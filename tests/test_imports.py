"""Dependencies point one way, and what must start at once imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from gpt_jax.commands import VERBS

BASE = {"errors", "config", "files", "devices"}
ALLOWED = {
    "errors": set(),
    "settings": {"errors"},
    "config": {"errors", "settings"},
    "config_files": {"config", "errors", "settings"},
    "options": {"config_files", "errors", "settings"},
    "files": {"errors"},
    "hosts": {"errors", "settings"},
    "devices": set(),
    "plain_text": BASE,
    "corpora": BASE | {"hf_tokenizer", "plain_text", "shards", "tokenizer"},
    "tokenizer": BASE,
    "manifest": BASE,
    "shards": BASE | {"manifest", "tokenizer"},
    "shard_writer": BASE | {"manifest", "shards", "tokenizer"},
    "shuffle": set(),
    "data": BASE,
    "metrics": BASE,
    "sharding": BASE,
    "checkpoint": BASE,
    "report": BASE,
    "console": set(),
    "layers": {"config"},
    "attention": {"config", "layers"},
    "model": {"attention", "config", "layers"},
    "optim": {"config"},
    "step": {"config", "data", "layers", "model", "optim", "pieces"},
    "sample": {"config", "devices", "model"},
    "chips": set(),
    "hlo": set(),
    "plan": {"attention", "chips", "config", "errors", "hlo", "memory", "model", "programs"}
    | {"sample", "settings", "sharding"},
    "evaluation": {
        "attention",
        "config",
        "data",
        "devices",
        "metrics",
        "model",
        "sharding",
        "step",
    },
    "run_folder": BASE | {"corpora", "hf", "plain_text", "tokenizer"},
    "run": BASE
    | {"checkpoint", "corpora", "data", "evaluation", "hf", "hf_tokenizer", "metrics", "model"}
    | {"plain_text", "run_folder", "step", "tokenizer"},
    "hf": BASE | {"tensor_files"},
    "tensor_files": {"errors"},
    "hf_tokenizer": {"errors", "files", "tokenizer"},
    "text": {"config", "errors", "run", "sample", "step", "tokenizer"},
    "process": {"errors", "files"},
    "memory": {"attention", "chips", "config", "devices", "errors", "layers", "model", "step"},
    "pieces": {"data", "errors", "shuffle"},
    "feed": BASE | {"data", "pieces", "sharding", "step"},
    "programs": {"attention", "config", "data", "devices", "feed", "memory", "model", "optim"}
    | {"pieces", "sharding", "step"},
    "replay": {"checkpoint", "errors", "metrics", "model", "programs", "run_folder", "sharding"}
    | {"start", "step", "tokenizer"},
    "announce": {"attention", "console", "devices", "programs", "run", "start"},
    "finish": {"console", "evaluation", "files", "hosts", "report", "run", "run_folder", "start"}
    | {"text"},
    "verify": {"checkpoint", "config", "errors", "hf", "loop", "model", "programs", "run", "start"},
    "start": BASE
    | {
        "checkpoint",
        "corpora",
        "data",
        "hf",
        "model",
        "plain_text",
        "run",
        "run_folder",
        "settings",
    }
    | {"text", "tokenizer"},
}
MODULES = sorted(path.stem for path in (ROOT / "gpt_jax").glob("*.py"))
# Of the folder data: each imports only modules before it.
DATA = ["filters", "settings", "documents", "texts", "json_lines", "parquet", "common_crawl"]
DATA += ["files", "hugging_face", "sources", "parts", "engines", "processes", "vocabulary"]
DATA += ["assembly", "prepare", "command"]


def siblings(module: str, package: str = "gpt_jax") -> set[str]:
    """Which modules of a package the text of one of them imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / package / f"{module}.py").read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith(f"{package}.")}
    return found


def imported(path: Path) -> set[str]:
    """Which packages and modules at the top a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("__init__", "loop")])
def test_a_module_imports_only_what_it_may(module):
    assert siblings(module) <= ALLOWED[module], "add the edge to ALLOWED only with a reason"


def test_a_module_of_data_imports_only_those_before_it():
    assert sorted(["__init__", *DATA]) == sorted(p.stem for p in (ROOT / "data").glob("*.py"))
    for i, module in enumerate(DATA):
        assert siblings(module, "data") <= set(DATA[:i]), module


def test_nothing_in_the_package_imports_the_loop():
    for module in MODULES:
        if module not in ("__init__", "verify"):  # which tries all of it
            assert "loop" not in siblings(module)


def test_nothing_imports_the_command_line_and_the_package_nothing_outside():
    for path in (ROOT / "gpt_jax").rglob("*.py"):
        assert not imported(path) & {"data", "main"}, path
    for module in MODULES:
        assert "commands" not in siblings(module), module


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import gpt_jax", ["jax", "numpy", "rich"]),
        ("import main", ["jax", "numpy", "rich"]),
        (
            f"from gpt_jax.commands import {', '.join(sorted({*VERBS} - {'prepare'}))}",
            ["jax", "numpy", "rich"],
        ),
        ("import data.command", ["jax", "orjson", "rich"]),
        ("import gpt_jax.report", ["jax"]),
        ("import gpt_jax.corpora", ["jax", "requests"]),
        ("import gpt_jax.run_folder", ["jax", "requests", "tiktoken", "tokenizers"]),
        ("import gpt_jax.shards", ["jax", "requests", "tiktoken", "tokenizers"]),
        (
            "import gpt_jax.loop",
            ["matplotlib", "requests", "tensorboardX", "tiktoken", "tokenizers"],
        ),
        (
            "from gpt_jax.tokenizer import *; from_json(CharTokenizer.train('ab').to_json())",
            ["jax", "requests", "tiktoken", "tokenizers"],
        ),
        ("import gpt_jax; gpt_jax.load_config('nano')", ["jax"]),
        ("import gpt_jax; gpt_jax.hf.load", ["jax", "safetensors"]),
    ],
)
def test_what_must_start_at_once_imports_nothing_heavy(statement, absent):
    code = f"{statement}\nimport sys\nprint([m for m in {absent} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_no_module_imports_torch_or_tensorflow():
    folders = ("gpt_jax", "configs", "data")
    for path in [ROOT / "main.py", *(p for name in folders for p in (ROOT / name).rglob("*.py"))]:
        assert not imported(path) & {"torch", "tensorflow"}
