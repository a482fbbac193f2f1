"""docs/change-one-thing.md: each diff applies, has the lines stated and does what is said of it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "change-one-thing.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
STATED = {
    title: (int(added), int(removed))
    for title, added, removed in re.findall(
        r"^\| \[(.+?)\]\(#.+?\) \| (\d+) \| (\d+) \|", PAGE, re.M
    )
}
CHECKS = Path(__file__).with_name("changed_program.py")
CHECK_NAMES = [
    node.name
    for node in ast.parse(CHECKS.read_text("utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


def hunks(title: str) -> list[tuple[str, list[str]]]:
    """Returns (file, lines with their +, - or space) of each hunk of a section."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", SECTIONS[title], re.M | re.S)
    found, path = [], ""
    for line in diff.splitlines():
        if line.startswith("+++ b/"):
            path = line.removeprefix("+++ b/")
        elif line == "@@":
            found.append((path, []))
        elif not line.startswith("--- "):
            assert line[:1] in ("+", "-", " "), line
            found[-1][1].append(line)
    return found


def apply(title: str, root: Path) -> None:
    """Applies a section's diff below a folder; what a hunk replaces must be there exactly once."""
    for name, lines in hunks(title):
        old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
        new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
        path = root / name
        text = "\n" + path.read_text("utf-8")
        assert text.count("\n" + old) == 1, f"{title}: {name} does not have, once:\n{old}"
        path.write_text(text.replace("\n" + old, "\n" + new)[1:], encoding="utf-8")


def copy_program(folder: Path) -> Path:
    for name in ("gpt_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "main.py", folder)
    return folder


@pytest.mark.parametrize("title", STATED)
def test_a_change_has_the_lines_that_the_page_states_and_applies_alone(title, tmp_path):
    signs = [line[0] for _, lines in hunks(title) for line in lines]
    assert (signs.count("+"), signs.count("-")) == STATED[title]
    apply(title, copy_program(tmp_path))
    changed = sorted({name for name, _ in hunks(title)})
    for name in changed:
        assert (tmp_path / name).read_text("utf-8") != (ROOT / name).read_text("utf-8")
    command = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml")]
    subprocess.run([*command, *changed], cwd=tmp_path, check=True)
    subprocess.run(
        [*command[:3], "format", "--check", *command[4:], *changed], cwd=tmp_path, check=True
    )


def test_the_page_has_the_five_changes_and_no_diff_that_is_not_counted():
    assert list(STATED) == [
        "An activation", "A parallel block", "ALiBi", "An optimizer", "A loss with a mask",
    ]  # fmt: skip
    assert PAGE.count("```diff") == len(STATED)
    assert STATED["An activation"] == (1, 0)


@pytest.fixture(scope="module")
def failures(tmp_path_factory) -> dict[str, str]:
    """The checks of `changed_program.py` in a copy with all changes: {check: failure or ""}."""
    folder = copy_program(tmp_path_factory.mktemp("changed"))
    for title in STATED:
        apply(title, folder)
    environment = os.environ | {"PYTHONPATH": str(folder), "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [sys.executable, str(CHECKS), str(folder)],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECK_NAMES)
def test_the_changed_program(failures, name):
    assert failures[name] == ""
