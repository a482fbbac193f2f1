"""Where two runs part: a branch and its parent, two branches, and a branch of a branch."""

import json
import shutil
from pathlib import Path

import pytest
from fake_runs import write_run

import gpt_jax
from gpt_jax.experiments.parting import parting_step
from gpt_jax.experiments.sides import read_run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_branch(name, lineage, seed=0, identity=None, loss=1.9):
    """A run with these ancestors: (folder, id, step)."""
    origin = {"lineage": [dict(zip(("path", "id", "step"), each, strict=True)) for each in lineage]}
    settings = {}
    if lineage:
        settings = {"branch_from": lineage[-1][0], "at_step": lineage[-1][2]}
    run_dir = write_run(name, seed, loss, settings=settings)
    values = json.loads((run_dir / "config.json").read_text("utf-8"))
    values |= {"id": identity or name, "origin": origin if lineage else None}
    (run_dir / "config.json").write_text(json.dumps(values), "utf-8")
    return run_dir


def test_the_last_step_in_common(folder):
    root, first = ("root", "root", 300), ("first", "first", 400)
    write_branch("root", [])
    write_branch("first", [root])
    write_branch("second", [("root", "root", 200)])
    write_branch("third", [root, first])
    write_branch("other", [("elsewhere", "elsewhere", 300)])
    write_branch("alike", [], identity="root")
    expected = {
        ("root", "first"): 300,
        ("first", "root"): 300,
        ("first", "second"): 200,
        ("first", "third"): 400,
        ("second", "third"): 200,
        ("root", "third"): 300,
        ("alike", "first"): 300,  # begun as the root was
        ("root", "other"): None,
        ("first", "other"): None,
        ("root", "alike"): None,
    }
    found = {pair: parting_step(*map(read_run, pair)) for pair in expected}
    assert found == expected
    shutil.rmtree("root")  # the branches know it
    assert parting_step(read_run("first"), read_run("second")) == 200


def test_runs_of_an_earlier_release_have_no_id_and_are_known_by_their_place(folder):
    place = str(Path("root").resolve())
    run_dir = write_branch("root", [])
    values = json.loads((run_dir / "config.json").read_text("utf-8"))
    (run_dir / "config.json").write_text(json.dumps(values | {"id": None}), "utf-8")
    write_branch("a", [(place, None, 100)])
    write_branch("b", [(place + "x", None, 100)])
    assert parting_step(read_run("root"), read_run("a")) == 100
    assert parting_step(read_run("a"), read_run("b")) is None


def test_compare_says_and_draws_it(folder):
    for seed in range(2):
        write_branch(f"base-{seed}", [], seed)
        write_branch(f"cut-{seed}", [(f"base-{seed}", f"base-{seed}", 300)], seed, loss=1.8)
    found = gpt_jax.compare("base-*", "cut-*")
    assert found.parts == (300,)
    assert "note: cut-* and base-* part at step 300: up to it they have the same" in str(found)
    assert found.record()["parts"] == [300]
    assert found.settings == {"at_step": (None, 300)}
    with_mark = found.plot("a.svg").read_text("utf-8")
    shutil.rmtree("cut-1")
    write_branch("cut-1", [], 1)
    some = gpt_jax.compare("base-1", "cut-1")
    assert some.parts == ()
    assert "stroke-dasharray" in with_mark
    assert "stroke-dasharray" not in some.plot("b.svg").read_text("utf-8")
