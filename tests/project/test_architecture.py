"""ARCHITECTURE.md: its picture is the layering, its tables name every module."""

import re

import pytest
from conftest import ROOT
from test_layering import ALLOWED

TEXT = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
ORDER = list(ALLOWED)
NAMES = {"shards": "input_pipeline.shards", "main": "__main__"}  # of the picture, where they differ


def below(name: str) -> set[str]:
    """What a layer may import, but for imports that are still to be turned round."""
    return {other for other in ALLOWED[name] if ORDER.index(other) < ORDER.index(name)}


def reachable(name: str) -> set[str]:
    return below(name) | {far for near in below(name) for far in reachable(near)}


def test_the_picture_is_the_layering():
    """Its arrows are those of ALLOWED that do not follow from others."""
    (picture,) = re.findall(r"```mermaid\n(.*?)```", TEXT, re.DOTALL)
    found = re.findall(r"^ *(\w+)(?:\[[^]]*\])? --> (\w+)", picture, re.MULTILINE)
    drawn = {tuple(NAMES.get(name, name) for name in arrow) for arrow in found}
    assert len(found) == picture.count("-->") == len(drawn)
    needed = {
        (name, other)
        for name in ALLOWED
        for other in below(name)
        if not any(other in reachable(near) for near in below(name))
    }
    assert drawn == needed


def tables() -> dict[str, list[str]]:
    """The module names in the first column of the table of each package."""
    sections = re.split(r"^### `(.+?)/`$", TEXT, flags=re.MULTILINE)[1:]
    return {
        package: re.findall(r"^\| `(\w+\.py)` \|", section, re.MULTILINE)
        for package, section in zip(sections[::2], sections[1::2], strict=True)
    }


def test_every_module_is_named_once_and_every_package_has_a_table():
    files = [path for top in ("gpt_jax", "data") for path in (ROOT / top).rglob("*.py")]
    there: dict[str, list[str]] = {}
    for path in files:
        if path.name != "__init__.py":
            there.setdefault(str(path.parent.relative_to(ROOT)), []).append(path.name)
    assert {name: sorted(rows) for name, rows in tables().items()} == {
        name: sorted(rows) for name, rows in there.items()
    }


def test_the_packages_are_in_the_order_of_the_layers():
    order = [name.removeprefix("gpt_jax/").replace("/", ".") for name in tables()]
    layers = [name for name in order if name in ALLOWED]
    assert layers == sorted(layers, key=ORDER.index)
    assert len(layers) == sum(
        (ROOT / "gpt_jax" / name.replace(".", "/")).is_dir() for name in ORDER
    )


def test_the_files_and_symbols_that_it_names_exist():
    prose = TEXT.partition("## Modules")[0] + TEXT.partition("## Decisions")[2]
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "gpt_jax").rglob("*.py"))
    names = set(re.findall(r"`([\w/]+\.py)`", prose))
    there = [*ROOT.glob("*.py"), *ROOT.glob("gpt_jax/**/*.py"), *ROOT.glob("tests/**/*.py")]
    there += ROOT.glob("configs/*.py")
    for name in names:
        assert any(path.match(name) for path in there), name
    for symbol in re.findall(r"`\w+\.([A-Z_]{3,}|[a-z]\w+)`", prose):
        assert symbol == "py" or re.search(rf"\b{symbol}\b", code), symbol


GLOSSARY = """micro-batch, gradient accumulation, chunk, segment, component, prefetch, lost, resume,
manifest, prefill, data parallel, fully sharded, tensor parallel, sequence parallel, skip,
activation checkpointing, mixed precision, bits per byte, divergence, plan"""


@pytest.mark.parametrize("word", re.split(r",\s+", GLOSSARY))
def test_the_glossary_comes_first_and_has_the_projects_words(word):
    before, _, after = TEXT.partition("## Words")
    assert "## " not in before
    terms = re.findall(r"^\| (.+?) \|", after.partition("## Packages")[0], re.MULTILINE)
    assert word in " ".join(terms).replace("**", "")
