"""The layering: dependencies point one way, and what must start at once imports nothing heavy."""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conftest import ROOT

from gpt_jax.cli import VERBS

# The layers of gpt_jax, lowest first: package or module -> what it may import, itself aside. The
# order is the rule that no import runs upward; a row says which of the layers below it are used.
ALLOWED = {
    "version": set(),
    "terminal": set(),
    "errors": set(),
    "devices": {"errors"},
    "moving_lines": set(),
    "console": {"moving_lines", "terminal"},
    "prng": set(),
    "numerics": {"errors", "prng", "version"},
    "storage": {"errors"},
    "download": {"storage"},
    "config": {"errors"},
    "byte_pairs": set(),
    "integer_tokenizer": {"errors", "storage"},
    "tokenizer": {"byte_pairs", "config", "download", "errors", "integer_tokenizer", "storage"},
    "parallel": {"config", "devices", "errors", "terminal"},
    "model": {"config", "parallel"},
    "hf": {"config", "errors", "integer_tokenizer", "storage", "tokenizer"},
    "input_pipeline.shards": {"errors", "storage", "tokenizer"},
    "input_pipeline": {"byte_pairs", "config", "devices", "download", "errors"}
    | {"input_pipeline.shards", "integer_tokenizer", "numerics", "parallel", "prng", "storage"}
    | {"tokenizer"},
    "run": {"config", "devices", "errors", "hf", "input_pipeline", "model", "numerics", "parallel"}
    | {"storage", "terminal", "tokenizer"},
    "inference": {"config", "devices", "errors", "input_pipeline", "model", "numerics", "parallel"}
    | {"prng", "run", "tokenizer"},
    "training": {"config", "console", "devices", "errors", "hf", "inference", "input_pipeline"}
    | {
        "byte_pairs",
        "input_pipeline.shards",
        "integer_tokenizer",
        "model",
        "numerics",
        "parallel",
        "prng",
        "run",
        "storage",
        "terminal",
        "tokenizer",
    },
    "experiments": {"config", "console", "errors", "numerics", "parallel", "run", "storage"}
    | {"terminal", "training", "version"},
    "analysis": {"config", "devices", "errors", "hf", "inference", "model", "numerics", "parallel"}
    | {"input_pipeline", "prng", "run", "tokenizer", "training"},
    "report": {"config", "errors", "experiments", "inference", "model", "numerics", "prng", "run"}
    | {"storage", "terminal", "tokenizer", "training", "version"},
    "cli": {"analysis", "config", "console", "devices", "errors", "experiments", "hf", "inference"}
    | {"input_pipeline", "numerics", "parallel", "report", "run", "storage", "terminal"}
    | {"training"}
    | {"version"},
    "__main__": {"cli"},
}
# Pure modules: functions of their arguments, so no files, clock, mesh or console, no processes.
PURE = ["prng", "model.*", "training.state", "training.optimizer", "training.step"]
PURE += [
    "training.hyperparameters",
    "training.divergence",
    "input_pipeline.permutation",
    "input_pipeline.sampler",
]
PURE += ["inference.windows", "inference.decoding"]
PURE += ["experiments.statistics", "experiments.sequential"]
NOT_IN_PURE = {"os", "io", "time", "pathlib", "json", "sys", "logging", "shutil", "subprocess"}
NOT_IN_PURE |= {"threading", "concurrent", "gpt_jax.storage", "gpt_jax.console", "gpt_jax.run"}
NOT_IN_PURE |= {"gpt_jax.parallel.mesh", "gpt_jax.parallel.multihost"}
# Who may import the driver: the verb, and what tries all of it (the package's own names are lazy).
DRIVER, DRIVERS = "gpt_jax.training.trainer", {"gpt_jax.cli.train", "gpt_jax.analysis.verify"}
DRIVERS |= {"gpt_jax.experiments.trial_runs"}
DRIVERS |= {"gpt_jax.experiments.sweeps", "gpt_jax.training.lockstep"}
# Of `data`, lowest first: each imports only those before it.
DATA = ["filters", "config", "sources.xz", "sources.documents", "sources.text", "sources.bordered"]
DATA += ["sources.json_lines", "sources.parquet_pages", "sources.parquet"]
DATA += ["sources.common_crawl", "sources.local_files"]
DATA += ["sources.hugging_face", "sources.readers", "records", "encode", "engines", "workers"]
DATA += ["vocabulary", "merge", "prepare", "cli"]


def modules(package: str) -> dict[str, Path]:
    """The modules below a package by their dotted names, without it: "model.gpt"."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {
        ".".join(path.relative_to(ROOT / package).with_suffix("").parts): path for path in files
    }


def imported(path: Path) -> set[str]:
    """The dotted names that a file imports, anywhere in it; modules imported from a package too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found.add(module)
            for alias in node.names:
                inside = ROOT.joinpath(*module.split("."), alias.name)
                if inside.is_dir() or inside.with_suffix(".py").is_file():
                    found.add(f"{module}.{alias.name}")
    return found


def layer(name: str) -> str | None:
    """The layer of a dotted name in gpt_jax: its longest prefix in ALLOWED."""
    words = name.split(".")[1:]
    prefixes = (".".join(words[:n]) for n in range(len(words), 0, -1))
    return next((prefix for prefix in prefixes if prefix in ALLOWED), None)


def matches(name: str, names: set[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in names)


def test_every_module_has_a_layer_and_every_package_something_in_it():
    folders = {path.parent for path in (ROOT / "gpt_jax").rglob("*.py")}
    for folder in folders:
        assert (folder / "__init__.py").is_file(), folder
        assert len(list(folder.glob("*.py"))) > 1, f"{folder} is empty"
    for name in modules("gpt_jax"):
        assert name == "__init__" or layer(f"gpt_jax.{name}"), f"{name} has no row in ALLOWED"
    for name in ALLOWED:
        assert layer(f"gpt_jax.{name}") == name
        path = ROOT.joinpath("gpt_jax", *name.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"{name} is not there"


def test_the_wheel_has_every_package():
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    folders = {path.parent for path in (ROOT / "gpt_jax").rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == packages | {"gpt_jax.configs"}


@pytest.mark.parametrize("name", ALLOWED)
def test_a_layer_imports_only_what_it_may(name):
    order = list(ALLOWED)
    assert all(order.index(other) < order.index(name) for other in ALLOWED[name]), name
    for module, path in modules("gpt_jax").items():
        if layer(f"gpt_jax.{module}") != name:
            continue
        layers = {layer(other) for other in imported(path) if other.startswith("gpt_jax.")}
        for other in layers - {name, None}:
            assert other in ALLOWED[name], f"{path} imports {other}; see ALLOWED"


def test_the_table_has_no_edge_that_nobody_uses():
    used = {name: set() for name in ALLOWED}
    for module, path in modules("gpt_jax").items():
        if name := layer(f"gpt_jax.{module}"):
            used[name] |= {layer(other) for other in imported(path) if "gpt_jax." in other}
    for name, edges in ALLOWED.items():
        assert edges <= used[name], f"{name} does not import {edges - used[name]}"


def test_the_modules_of_a_package_do_not_import_in_a_circle():
    edges = {
        f"gpt_jax.{name}": {other for other in imported(path) if other.startswith("gpt_jax.")}
        for name, path in modules("gpt_jax").items()
        if not name.endswith("__init__")
    }
    while leaves := {name for name, others in edges.items() if not others & edges.keys()}:
        edges = {name: others for name, others in edges.items() if name not in leaves}
    assert not edges, f"these import one another: {sorted(edges)}"


@pytest.mark.parametrize("pattern", PURE)
def test_pure_modules_import_no_file_clock_mesh_or_console(pattern):
    found = [name for name in modules("gpt_jax") if fnmatch(name, pattern)]
    assert found
    for name in found:
        for other in imported(modules("gpt_jax")[name]):
            assert not matches(other, NOT_IN_PURE), f"{name} imports {other}"


def test_only_the_verb_and_verify_import_the_driver():
    for name, path in modules("gpt_jax").items():
        if f"gpt_jax.{name}" not in DRIVERS and name != "__init__":
            assert DRIVER not in imported(path), name


def test_a_module_of_data_imports_only_those_before_it():
    there = {name for name in modules("data") if not name.endswith("__init__")}
    assert there == set(DATA)
    for i, name in enumerate(DATA):
        for other in imported(modules("data")[name]):
            if other.startswith("data.") and other != "data.sources":
                assert other.removeprefix("data.") in DATA[:i], f"{name} imports {other}"


def test_the_package_imports_nothing_outside_it():
    for path in modules("gpt_jax").values():
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & {"data", "main", "tests", "benchmarks"}, path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import gpt_jax", ["jax", "numpy", "rich"]),
        ("import main", ["jax", "numpy", "rich"]),
        ("import gpt_jax.__main__", ["jax", "numpy", "rich"]),
        (
            f"from gpt_jax.cli import {', '.join(sorted({*VERBS} - {'prepare'}))}",
            ["jax", "numpy", "rich"],
        ),
        ("import data.cli", ["jax", "orjson", "rich"]),
        ("import gpt_jax.run.plots", ["jax"]),
        ("import gpt_jax.input_pipeline.corpus", ["jax", "requests"]),
        ("import gpt_jax.run.folder", ["jax", "requests", "tiktoken", "tokenizers"]),
        (
            "import gpt_jax.input_pipeline.shards.reader",
            ["jax", "requests", "tiktoken", "tokenizers"],
        ),
        (
            "import gpt_jax.training.trainer",
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
    paths = [ROOT / "main.py", *(ROOT / "configs").glob("*.py")]
    paths += [*modules("gpt_jax").values(), *modules("data").values()]
    for path in paths:
        assert not {name.split(".")[0] for name in imported(path)} & {"torch", "tensorflow"}, path


def test_the_driver_reads_as_its_stages_and_keeps_no_closure_over_what_changes():
    """A function in a method may use `self`, what it is given and what is assigned once."""
    tree = ast.parse((ROOT / "gpt_jax/training/trainer.py").read_text("utf-8"))
    (trainer,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Trainer"]
    (run,) = [n for n in trainer.body if isinstance(n, ast.FunctionDef) and n.name == "run"]
    assert run.end_lineno - run.lineno < 40
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        stored = [n.id for n in ast.walk(function) if isinstance(n, ast.Name) and is_stored(n)]
        stored += [a.target.id for a in ast.walk(function) if isinstance(a, ast.AugAssign)
                   and isinstance(a.target, ast.Name)]  # fmt: skip
        changing = {name for name in stored if stored.count(name) > 1}
        for inner in ast.walk(function):
            if inner is not function and isinstance(inner, (ast.Lambda, ast.FunctionDef)):
                used = {n.id for n in ast.walk(inner) if isinstance(n, ast.Name)}
                assert not used & changing, f"{function.name}: a closure over {used & changing}"


def is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)
