"""The page as a file: what it says of runs, sweeps and trials, and what a run can't put in it."""

import base64
import dataclasses
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from conftest import find_chromium
from fake_runs import write_run, write_side, write_sweep

import gpt_jax
from benchmarks import nano_page
from gpt_jax import numerics
from gpt_jax.cli.report import command
from gpt_jax.config import Config, to_dict
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.experiments.outcomes import Pair
from gpt_jax.experiments.trial_record import FORMAT, Question, TrialRecord
from gpt_jax.integer_tokenizer import IntegerTokenizer
from gpt_jax.report import live, payload
from gpt_jax.report import page as pages
from gpt_jax.report.page import write_page
from gpt_jax.report.payload import shown_values, thin

HOSTILE = "</script><script>alert(1)</script><!--\"'&amp;\x1b[31m\u202e\u2028\ud800"


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """The model has tests of its own, and fake runs have none."""
    monkeypatch.setattr(pages, "make_live_model", lambda *args, **options: {"reason": "none here"})


def data_of(text):
    found = re.findall(r'<script type="application/json" id="report-data">(.*?)</script>', text)
    assert len(found) == 1
    return json.loads(found[0])


def report(*names, **options):
    return data_of(gpt_jax.make_report([*map(str, names)], **options).text)


def test_a_run_is_shown_with_its_curves_corpus_settings_and_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run("runs/nano", settings={"optim.learning_rate": 0.01})
    made = gpt_jax.make_report("runs/nano")
    assert str(made.path) == "runs/nano/report.html"
    assert made.path.read_text("utf-8") == made.text
    assert made.notes == ("without the model: none here",)
    data = data_of(made.text)
    (run,), (group,) = data["runs"], data["groups"]
    assert run["state"] == "finished, 500 steps"
    assert run["figures"]["exact validation loss"] == 1.95
    assert run["corpus"]["sha256"] == "5" * 64
    assert group["curve"]["step"] == [0, 100, 200, 300, 400, 500]
    assert group["curve"]["val_loss"] == [3.96, 3.56, 3.16, 2.76, 2.36, 1.96]
    assert group["curve"]["tokens_per_step"] == 32 * 64
    assert group["curve"]["seconds"][-1] == pytest.approx(500 * 32 * 64 / 10_000)
    assert group["curve"]["learning_rate"] == [0.01] * 6  # constant, so no row has it
    commands = dict(run["commands"])
    assert "--run-dir runs/nano-again" in commands["makes it again"]
    assert "--optim.learning-rate 0.01" in commands["makes it again"]
    marked = [row["name"] for row in data["settings"]["rows"] if row["set"]]
    assert "optim.learning-rate" in marked
    assert "model.n-layer" not in marked
    assert "model.vocab-size" not in marked  # nobody sets it


def commands_of(folder):
    return dict(report(folder)["runs"][0]["commands"])


def test_the_commands_are_those_of_branches_members_and_saved_runs(tmp_path):
    branch = write_run(tmp_path / "b", settings={"branch_from": "runs/a", "at_step": 200})
    file = branch / "config.json"
    origin = {"step": 200, "change": {"optim.clip": {"from": 1.0, "to": 0.5}}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"origin": origin}))
    commands = commands_of(branch)
    begins = "--branch-from runs/a --at-step 200 --run-dir"
    assert f"{begins} {branch} --optim.clip 0.5" in commands["made it, as its settings say"]
    assert f"{begins} {branch}-again --optim.clip 0.5" in commands["makes it again"]
    member = write_sweep(tmp_path / "sweep", [({}, 0, 1.9)]) / "m0"
    commands = commands_of(member)  # which the sweep made
    assert "main.py sweep --config" in commands["made it, as its settings say"]
    assert f"--out {tmp_path}/sweep" in commands["made it, as its settings say"]
    assert f"--run-dir {tmp_path}/sweep-m0" in commands["makes it again"]
    saved = write_run(tmp_path / "s")
    file = saved / "config.json"
    origin = {"source": "runs/a", "step": 200}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"origin": origin}))
    assert list(commands_of(saved)) == ["writes text"]


def test_a_run_that_goes_on_is_shown_as_far_as_it_has_come(tmp_path):
    run_dir = write_run(tmp_path / "run", finished=False)
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write('{"step": 450, "lo')  # a row that is being written
    (run,) = report(run_dir)["runs"]
    assert run["state"] == "at step 400 of 500"
    assert run["figures"]["exact validation loss"] is None
    assert "continues it" in dict(run["commands"])
    (run_dir / "metrics.jsonl").unlink()  # before its first row
    data = report(run_dir)
    assert data["runs"][0]["state"] == "at step 0 of 500"
    assert data["groups"][0]["curve"]["step"] == []


def test_no_text_of_a_run_becomes_markup_or_obeyed(tmp_path):
    run_dir = write_run(
        tmp_path / "a", corpus={"name": HOSTILE}, settings={"sample.prompt": HOSTILE}
    )
    sample = json.dumps({"step": 100, "text": HOSTILE}) + "\n"
    (run_dir / "samples.jsonl").write_text(sample)
    text = gpt_jax.make_report(run_dir, tmp_path / "p.html").text
    text.encode("ascii", "strict") if text.isascii() else text.encode("utf-8", "strict")
    raw = re.search(r'id="report-data">(.*?)</script>', text)[1]
    assert raw.isascii()
    assert not set("<>&") & set(raw)
    assert "alert(1)</script>" not in text
    run = data_of(text)["runs"][0]
    for shown in (run["corpus"]["name"], run["samples"][0]["text"]):
        assert shown.startswith("</script><script>alert(1)</script><!--\"'&amp;\\x1b[31m\\u202e")
    title = re.search("<title>(.*?)</title>", text)[1]
    assert "<" not in title


def test_the_page_may_execute_its_own_scripts_alone_and_reach_nothing(tmp_path):
    text = gpt_jax.make_report(write_run(tmp_path / "run"), tmp_path / "p.html").text
    policy = re.search('http-equiv="Content-Security-Policy" content="(.*?)"', text)[1]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["worker-src"] == "blob:"
    scripts = re.findall(r'<script type="text/javascript"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert len(scripts) == len(pages.SCRIPTS)
    digests = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts}
    assert set(re.findall("'sha256-(.*?)'", rules["script-src"])) == digests
    assert "unsafe" not in policy
    outside = text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.search(r"(src|href|url|import|fetch)\s*[=(]\s*[\"']?https?:", outside)


def test_a_sweep_is_shown_as_means_with_intervals_and_judged(tmp_path):
    members = [
        ({"optim.learning_rate": rate}, seed, 2.0 - 100 * rate + seed / 100)
        for rate in (1e-4, 1e-3) for seed in range(3)
    ]  # fmt: skip
    data = report(write_sweep(tmp_path / "sweep", members))
    assert [(group["label"], group["n"]) for group in data["groups"]] == [
        ("optim.learning-rate=0.0001", 3),
        ("optim.learning-rate=0.001", 3),
    ]
    curve = data["groups"][0]["curve"]
    assert curve["val_loss"][-1] == pytest.approx(1.99 + 0.01 + 0.01)
    half = 4.302653 * 0.01 / np.sqrt(3)  # Student's t of 2 degrees, deviation 0.01
    assert curve["halves"]["val_loss"][-1] == pytest.approx(half, rel=1e-4)
    assert len(data["runs"]) == 6
    differing = [row["name"] for row in data["settings"]["rows"] if row["differs"]]
    assert differing == ["optim.learning-rate"]
    of_sweep, beside = data["verdicts"]
    assert of_sweep["tables"][0][1][0] == "0.001"  # the lowest loss first
    assert beside["tables"][0][0][-1] == "verdict"


def test_a_sweep_that_goes_on_is_shown_without_what_has_not_begun(tmp_path):
    folder = write_sweep(tmp_path / "sweep", [({}, 0, 1.9), ({}, 1, None), ({}, 2, 1.8)])
    (folder / "m2" / "config.json").unlink()
    data = report(folder)
    assert [run["state"] for run in data["runs"]] == ["finished, 500 steps", "at step 400 of 500"]
    assert data["notes"][0] == f"{folder}: 1 of 3 runs have not begun"
    for name in ("m0", "m1"):
        (folder / name / "config.json").unlink()
    with pytest.raises(UserError, match="has no run yet"):
        report(folder)


def test_a_trial_is_shown_with_its_verdict(tmp_path):
    write_side(tmp_path / "trial/base", [2.0, 2.1])
    write_side(tmp_path / "trial/change", [1.9, 1.95], settings={"optim.learning_rate": 0.01})
    question = Question(to_dict(Config()), {"optim.learning_rate": 0.01}, 0.01, None, True)
    record = TrialRecord(FORMAT, question, [Pair([0, 0], 2.0, 1.9), Pair([1, 1], 2.1, 1.95)])
    (tmp_path / "trial/trial.json").write_text(json.dumps(dataclasses.asdict(record)))
    data = report(tmp_path / "trial")
    assert [(group["label"], group["n"]) for group in data["groups"]] == [
        ("base", 2),
        ("change", 2),
    ]
    assert "2 pairs" in data["verdicts"][0]["sentences"][0]


def test_two_sides_have_the_verdict_of_compare_and_else_the_reason(tmp_path):
    write_side(tmp_path / "a", [2.0, 2.02, 1.99, 2.01])
    write_side(tmp_path / "b", [1.9, 1.93, 1.89, 1.9], settings={"optim.learning_rate": 0.01})
    names = str(tmp_path / "a-*"), str(tmp_path / "b-*")
    (verdict,) = report(*names, out=tmp_path / "p.html")["verdicts"]
    assert verdict["sentences"] == [gpt_jax.compare(*names).sentence]
    going_on = write_run(tmp_path / "c", finished=False)
    data = report(tmp_path / "a-0", going_on)
    assert "is not finished" in data["verdicts"][0]["sentences"][0]
    assert [group["label"] for group in data["groups"]] == ["a-0", "c"]


def test_curves_are_thinned_and_that_is_said(tmp_path, monkeypatch):
    columns = {
        "step": np.arange(10_000.0),
        "loss": np.ones(10_000),
        "val_loss": np.full(10_000, np.nan),
    }
    columns["loss"][4321], columns["val_loss"][::1000] = 99, 1
    kept = thin(columns, 400)
    assert len(kept) <= 440
    assert {0, 1000, 4321, 9999} <= set(kept)  # ends, evaluations, the spike
    assert (np.diff(kept) > 0).all()
    monkeypatch.setattr("gpt_jax.report.payload.MOST_POINTS", 4)
    assert "curves are thinned to at most 4 points" in report(write_run(tmp_path / "r"))["notes"][0]


def test_what_is_left_out_is_said(tmp_path, monkeypatch, capsys):
    members = [({"optim.learning_rate": rate}, 0, 1.9) for rate in (1e-4, 2e-4, 3e-4)]
    folder = write_sweep(tmp_path / "sweep", members)
    rows = [json.dumps({"step": step, "text": "x" * 9 * (step % 3)}) for step in range(5)]
    (folder / "m1/samples.jsonl").write_text("\n".join(rows) + "\n")
    assert report(folder)["notes"] == ["without the model: none here"]  # it is all there
    monkeypatch.setattr(payload, "MOST_GROUPS", 2)
    assert report(folder)["notes"][:-1] == [
        "2 of 3 settings have a curve; name fewer",
        "2 of 3 runs have a curve and texts; name fewer",
    ]
    monkeypatch.setattr(payload, "MOST_GROUPS", 60)
    monkeypatch.setattr(payload, "MOST_RUNS", 2)
    monkeypatch.setattr(payload, "MOST_SAMPLES", 4)
    monkeypatch.setattr(payload, "SAMPLE_CHARACTERS", 17)
    monkeypatch.setattr(
        pages,
        "make_live_model",
        lambda *args, **options: {"notes": ["1 state \x1b"], "reason": "no"},
    )
    assert command([str(folder)]) == 0
    notes = [
        "2 of 3 settings have a column in the table of settings",
        "2 of 3 runs have a curve and texts; name fewer",
        "of 5 samples of a run 4 are shown",
        "samples are cut after 17 characters",
        "without the model: no",
        "1 state \\x1b",
    ]
    assert capsys.readouterr().err == "".join(f"note: {note}\n" for note in notes)
    data = data_of((folder / "report.html").read_text("utf-8"))
    assert data["notes"] == notes
    assert all(len(row["values"]) == 2 for row in data["settings"]["rows"])
    assert [len(sample["text"]) for sample in data["runs"][1]["samples"]] == [0, 9, 0, 9]


def test_several_runs_are_not_compared_and_the_page_says_why(tmp_path):
    names = [str(run_dir) for run_dir in write_side(tmp_path / "a", [2.0, 1.9, 1.8])]
    (verdict,) = report(*names)["verdicts"]
    assert verdict["title"] == "3 are shown"
    (sentence,) = verdict["sentences"]
    assert sentence.startswith("They are not compared with one another, as a comparison has two")
    assert sentence.endswith(f"main.py compare {names[0]} {names[1]}")


def test_what_a_run_was_made_with_has_plain_names(tmp_path):
    run_dir = write_run(tmp_path / "a")
    file = run_dir / "config.json"
    record = {
        "machine": "AMD EPYC, 2 cores, 24 GiB", "versions": {"python": "3.11.7"},
        "numerics": {**{name: value for name, (value, _) in numerics.KEPT.items()},
                     "rounding": 2, "device": "cpu x86_64", "mesh": "2x1x1x1", "xla_flags": ""},
    }  # fmt: skip
    file.write_text(json.dumps(json.loads(file.read_text()) | record))
    (run,) = report(run_dir)["runs"]
    assert run["made with"] == {
        "machine": "AMD EPYC, 2 cores, 24 GiB", "python": "3.11.7", "way of rounding": 2,
        "device": "cpu x86_64", "devices: data x fsdp x tensor x sequence": "2x1x1x1",
    }  # fmt: skip
    record["numerics"] |= {"flax_rng_separator": True, "matmul_precision": "highest"}
    file.write_text(json.dumps(json.loads(file.read_text()) | record))
    (run,) = report(run_dir)["runs"]
    assert run["made with"]["precision of matrix products"] == "highest"
    assert not any("_" in name for name in run["made with"])


def test_the_page_in_docs_has_the_scripts_of_today():
    text = nano_page.PAGE.read_text("utf-8")
    assert len(text.encode()) <= nano_page.MAX_BYTES
    is_current = pages.page(nano_page.data_of(text)) == text
    assert is_current, "docs/nano.html is stale: python benchmarks/nano_page.py makes it anew"


@pytest.mark.parametrize(
    ("live", "said"),
    [
        ({"rounding": {"exact": 1.9, "rounded": 1.9011}}, "changes nano's loss by 0.0011, not at"),
        ({"rounding": {"why": "no corpus"}}, "not known: no corpus"),
        ({"reason": "no checkpoint"}, "no checkpoint"),
        ({"rounding": {"exact": 1.9, "rounded": 1.9009}}, ""),
    ],
)
def test_the_page_in_docs_is_not_made_where_its_model_is_not_nano(live, said):
    assert said in nano_page.problem({"live": live})
    assert bool(said) == bool(nano_page.problem({"live": live}))


def test_a_page_that_is_too_large_is_refused_in_a_line(tmp_path):
    run_dir = write_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"the page would have .* MB; name fewer"):
        gpt_jax.make_report(run_dir, max_bytes=10_000)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to report: name"),
        (["absent"], "absent is not a run: it does not exist"),
        (["run", "absent"], "absent is not a run: it does not exist"),
        (["ab*nt"], "--out is missing, and ab\\*nt is no folder"),
        (["ab*nt", "--out", "p.html"], "no run matches 'ab\\*nt'"),
        (["run", "--out", "page.txt"], "page page.txt must end in .html"),
        (["run", "--out", "absent/p.html"], "absent is not a folder"),
        (["run", "--out", "folder.html"], "page folder.html is a folder"),
        (["run", "run", "--metric", "speed"], "metric 'speed' is unknown"),
        (["run", "--max-parameters", "many"], "--max-parameters takes a whole number"),
        (["damaged"], "metrics.jsonl is damaged at line 1"),
    ],
)
def test_bad_input_ends_in_one_line(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run("run")
    (write_run("damaged") / "metrics.jsonl").write_text("{\n")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises((ConfigError, UserError), match=message) as found:
        command(argv)
    assert "\n" not in str(found.value)
    assert not list(tmp_path.glob("**/*.html"))[1:]


def test_the_page_has_a_model_of_integers_too():
    assert not live._why_not(Config().model, IntegerTokenizer(9), 10, 100, 1, 10)
    assert live.export_tokenizer(IntegerTokenizer(9)) == {"kind": "integers", "vocab_size": 9}


def test_numbers_that_json_lacks_are_null_and_texts_visible():
    values = {"a": [float("nan"), float("inf"), 1.23456789], "b\x1b": ("\x07", None, True, 7)}
    assert shown_values(values) == {"a": [None, None, 1.23457], "b\\x1b": ["\\x07", None, True, 7]}


def test_the_page_of_a_sweep_that_ended_is_no_reason_to_fail(tmp_path, capsys):
    folder = write_sweep(tmp_path / "sweep", [({}, 0, 1.9)])
    write_page(folder)
    assert (folder / "report.html").is_file()
    (folder / "m0" / "metrics.jsonl").write_text("{\n")
    write_page(folder)
    assert "note: no page: " in capsys.readouterr().err


def test_a_browser_that_is_missing_is_a_failure_where_there_must_be_one(monkeypatch):
    monkeypatch.delenv("GPT_JAX_NEEDS_BROWSER", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.skip.Exception):
        find_chromium()
    monkeypatch.setenv("GPT_JAX_NEEDS_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception):
        find_chromium()


def test_a_notebook_shows_the_page_in_a_frame_of_its_own(tmp_path):
    made = gpt_jax.make_report(write_run(tmp_path / "run"))
    shown = made._repr_html_()
    assert shown.startswith("<iframe")
    assert 'sandbox="allow-scripts"' in shown
    assert shown.count("<") == 2  # the page itself is an attribute
