"""`compare`: which runs are paired, by what, what is refused, and what is said of the result."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from fake_runs import write_run, write_side, write_sweep

import gpt_jax
import main
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.experiments.comparability import check_comparable
from gpt_jax.experiments.curves import difference_band, mean_band
from gpt_jax.experiments.measures import measure, parse_metric
from gpt_jax.experiments.sides import find_settings, find_side, read_run
from gpt_jax.experiments.statistics import pairs_to_show

BASE = [1.95, 1.97, 1.93, 1.96, 1.94]
LOWER = [1.93, 1.94, 1.92, 1.94, 1.91]  # differences -0.02, -0.03, -0.01, -0.02, -0.03
RATE = {"optim.learning_rate": 1e-3}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sides(a=BASE, b=LOWER, **values):
    write_side("runs/base", a)
    write_side("runs/change", b, **{"settings": RATE, **values})
    return "runs/base-*", "runs/change-*"


def edit_config(run_dir, change):
    path = Path(run_dir) / "config.json"
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


# --- pairs and verdicts ---------------------------------------------------------------------------


def test_pairs_are_runs_of_equal_seeds_and_the_paired_t_decides():
    found = gpt_jax.compare(*sides())
    expected = scipy.stats.ttest_rel(LOWER, BASE)
    assert found.is_paired
    assert found.a.seeds.tolist() == found.b.seeds.tolist() == [0, 1, 2, 3, 4]
    assert found.differences == pytest.approx([-0.02, -0.03, -0.01, -0.02, -0.03])
    assert found.p == pytest.approx(expected.pvalue)
    assert found.estimate.low == pytest.approx(expected.confidence_interval().low)
    assert found.flips.p == found.flips.least_p == 2 / 2**5
    assert found.correlation == pytest.approx(np.corrcoef(BASE, LOWER)[0, 1])
    assert found.settings == {"optim.learning_rate": (3e-4, 1e-3)}
    assert (found.verdict, found.status) == ("better", 0)
    assert found.sentence == ("runs/change-* is lower by 0.022 ± 0.010 nats (5 pairs, p = 0.0042)")


def test_runs_of_seeds_in_another_order_and_without_a_partner():
    write_side("a", BASE)
    write_side("b", [9.0, 1.93, 1.94, 1.92], seeds=[11, 0, 1, 2], settings=RATE)
    found = gpt_jax.compare("a-*", "b-*")
    assert found.differences == pytest.approx([-0.02, -0.03, -0.01])
    assert len(found.notes) == 2
    assert "2 of the runs of a-* are left out" in found.notes[0]
    assert "1 of the runs of b-*" in found.notes[1]


def test_the_sides_turned_round_give_the_opposite():
    a, b = sides()
    one, other = gpt_jax.compare(a, b), gpt_jax.compare(b, a)
    assert (other.verdict, other.status) == ("worse", 4)
    assert other.p == pytest.approx(one.p)
    assert other.estimate.mean == pytest.approx(-one.estimate.mean)
    assert other.sentence.startswith("runs/base-* is higher by 0.022 ± 0.010 nats")


def test_more_tokens_per_second_are_better():
    write_side("a", BASE[:1], speed=1000.0)
    for seed in (1, 2, 3):
        write_run(f"a-{seed}", seed, speed=1000.0 + seed)
        write_run(f"b-{seed}", seed, speed=2000.0 + seed**2)
    found = gpt_jax.compare("a-*", "b-*", metric="tokens/s")
    assert found.status == 0
    assert "b-* is higher by" in found.sentence
    assert gpt_jax.compare("b-*", "a-*", metric="tokens/s").status == 4


@pytest.mark.parametrize(
    ("seeds", "settings", "why"),
    [
        ([5, 6, 7, 8, 9], RATE, "no seed is on both sides"),
        ([4, 5, 6, 7, 8], RATE, "only one seed is on both sides"),
        (None, {"train.batch_size": 64}, "their batches differ: train.batch_size is 32 and 64"),
        (None, {"model.block_size": 32}, "their batches differ: model.block_size is 64 and 32"),
        (None, {"data.order": "epochs"}, "their batches differ: data.order is random and epochs"),
    ],
)
def test_what_has_other_batches_is_compared_unpaired_and_said(seeds, settings, why):
    found = gpt_jax.compare(*sides(seeds=seeds, settings=settings))
    expected = scipy.stats.ttest_ind(LOWER, BASE, equal_var=False)
    assert found.why_unpaired == why
    assert f"note: not paired: {why}" in str(found)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.flips is found.correlation is found.gain is None
    assert "5 and 5 runs, not paired" in found.sentence


def test_one_pair_decides_nothing():
    write_run("a", 3, 1.95)
    write_run("b", 3, 1.05, settings=RATE)
    found = gpt_jax.compare("a", "b")
    assert (found.verdict, found.status, found.p) == ("not shown", 3, 1.0)
    assert found.sentence.startswith("no difference shown: one pair has no spread")
    assert found.record()["interval"] is found.record()["p"] is None
    write_run("c", 4, 1.05, settings=RATE)
    assert "one run has no spread" in gpt_jax.compare("a", "c").sentence


@pytest.mark.parametrize("shift", [-0.5, 0.1, 0.0])
def test_zero_spread_alone_decides_nothing(shift):
    found = gpt_jax.compare(*sides(b=[loss + shift for loss in BASE]))
    assert found.status == 3
    said = "equal to the last bit" if not shift else "zero spread alone is no evidence"
    assert said in found.sentence
    assert "(5 pairs)" in found.sentence


def test_unpaired_sides_without_spread_decide_nothing():
    write_side("a", [1.9] * 4)
    write_side("b", [1.5] * 4, seeds=range(4, 8))
    assert gpt_jax.compare("a-*", "b-*").status == 3


def test_what_is_not_shown_says_how_many_more_pairs_would_show_it():
    a, b = sides([1.95, 1.97, 1.93], [1.97, 1.95, 1.94])
    found = gpt_jax.compare(a, b, smallest=0.01)
    deviation = np.std(found.differences, ddof=1)
    more = pairs_to_show(deviation, 0.01) - 3
    half = f"{found.estimate.half_width:.3f}"
    assert found.status == 3
    assert found.sentence == (
        f"no difference shown: ± {half} nats with 3 pairs; about {more} more would show 0.01"
    )
    seen = gpt_jax.compare(a, b)
    assert seen.shown == pytest.approx(abs(seen.differences.mean()))
    assert "more would show 0.0033" in seen.sentence
    wide = gpt_jax.compare(a, b, smallest=0.5)
    assert wide.sentence.endswith("a difference of 0.5 is ruled out")
    assert wide.status == 3


def test_alpha_is_the_limit():
    a, b = sides()
    assert gpt_jax.compare(a, b, alpha=0.0043).status == 0
    assert gpt_jax.compare(a, b, alpha=0.0041).status == 3
    assert "99.59% interval" in str(gpt_jax.compare(a, b, alpha=0.0041))


# --- metrics --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("final", 1.95),
        ("best", 1.96),
        ("bpb", 1.95 * 1.4),
        ("val@300", 2.76),
        ("val@0", 3.96),
        ("steps-to:2.16", 450),  # between 2.36 at 400 and 1.96 at 500
        ("steps-to:2.36", 400),
        ("steps-to:5", 0),
        ("seconds-to:2.16", 450 * 32 * 64 / 10_000),
        ("seconds-to:5", 0),
        ("tokens/s", 10_000),
    ],
)
def test_a_metric_by_hand(name, value):
    """The losses of a fake run fall by 0.4 every 100 steps."""
    metric = parse_metric(name)
    assert measure(read_run(write_run("a", 0, 1.95)), metric) == pytest.approx(value)
    assert metric.is_lower_better == (name != "tokens/s")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("", "metric '' is unknown"),
        ("loss", "there are final, best, bpb"),
        ("finl", "did you mean final?"),
        ("val@", "needs a step, such as val@300"),
        ("val@3.5", "needs a step"),
        ("val@-1", "needs a step"),
        ("steps-to:x", "needs a loss, such as steps-to:2.2"),
        ("seconds-to:nan", "needs a loss"),
        ("steps-to:inf", "needs a loss"),
        ("tokens/s2", "is unknown"),
    ],
)
def test_a_metric_that_there_is_not(name, line):
    with pytest.raises(ConfigError) as caught:
        parse_metric(name)
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("final", r"b is not finished \(step 400 of 500\)"),
        ("bpb", "b is not finished"),
        ("val@500", "b has no evaluation at step 500; it has those at 0, 100, 200, 300, 400"),
        ("val@50", "a has no evaluation at step 50; it has those at 0, 100"),
        ("steps-to:2", "b never has a validation loss of 2; its lowest is 2.36"),
        ("seconds-to:1", "a never has a validation loss of 1; its lowest is 1.96"),
    ],
)
def test_a_run_without_the_metric_is_refused(name, line):
    write_run("a")
    write_run("b", finished=False)
    with pytest.raises(UserError, match=line):
        gpt_jax.compare("a", "b", metric=name)
    assert gpt_jax.compare("a", "b", metric="val@400").status == 3


def test_rows_without_figures_are_no_metric():
    write_run("a")
    write_run("b")
    Path("b/metrics.jsonl").write_text("")
    for name in ("best", "val@0", "steps-to:3", "tokens/s"):
        with pytest.raises(UserError, match=r"b has no (evaluation|speed)"):
            gpt_jax.compare("a", "b", metric=name)
    nan = {"nats_per_token": float("nan")}
    write_run("c", summary=nan)
    with pytest.raises(UserError, match=r"c: its exact validation loss .* is nan"):
        gpt_jax.compare("a", "c")


def test_a_run_that_was_resumed_for_longer_is_finished_when_it_is():
    write_run("a")
    write_run("b", settings={"train.steps": 500})
    edit_config("b", lambda config: config["train"].update(steps=1000))
    with pytest.raises(UserError, match=r"not finished \(step 500 of 1,000\)"):
        gpt_jax.compare("a", "b")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "metric", "line"),
    [
        (
            {"corpus": {"sha256": "6" * 64}},
            "final",
            "different corpora: oz with sha256 555555555555",
        ),
        ({"corpus": {"sha256": "6" * 64}}, "tokens/s", "different corpora"),
        ({"settings": {"data.train_fraction": 0.9}}, "final", "data.train_fraction is 0.8 and 0.9"),
        ({"settings": {"data.train_fraction": 0.9}}, "bpb", "different validation splits"),
        ({"settings": {"train.final_eval_tokens": 99}}, "final", "is all and 99"),
        ({"summary": {"tokens_predicted": 41_000}}, "final", "of 41559 and 41000 tokens"),
        ({"tokenizer": '{"a": 1}'}, "final", "different tokenizers, .* use --metric bpb"),
        ({"tokenizer": '{"a": 1}'}, "val@300", "use --metric bpb"),
    ],
)
def test_runs_that_can_not_be_compared(values, metric, line):
    write_run("a")
    write_run("b", **values)
    with pytest.raises(UserError, match=line):
        gpt_jax.compare("a", "b", metric=metric)


def test_bits_per_byte_compare_tokenizers():
    a, b = sides(tokenizer='{"a": 1}')
    assert gpt_jax.compare(a, b, metric="bpb").status == 0


def test_prepared_folders_are_split_whatever_the_setting_says():
    corpus = {"characters": None}
    write_run("a", corpus=corpus)
    write_run("b", corpus=corpus, settings={"data.train_fraction": 0.9})
    for name in ("a", "b"):
        edit_config(name, lambda config: config["corpus"].pop("characters"))
    assert gpt_jax.compare("a", "b").status == 3


def test_a_folder_is_not_compared_with_itself(tmp_path):
    write_side("runs/base", BASE)
    for a, b in [("runs/base-1", "runs/base-1"), ("runs/base-*", "runs/base-2/")]:
        with pytest.raises(UserError, match="is on both sides"):
            gpt_jax.compare(a, b)
    (tmp_path / "link").symlink_to(tmp_path / "runs" / "base-0")
    with pytest.raises(UserError, match="is on both sides"):
        gpt_jax.compare("runs/base-0", "link")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("none-*", "no run matches 'none-*': there is nothing"),
        ("file*", "no run matches 'file*': there is nothing but file.txt, which is no run"),
        ("missing", "missing is not a run: it does not exist"),
        ("empty", "empty is not a run: it has no config.json"),
        ("twice-*", "twice-0 and twice-1 are on one side and both have seed 0"),
        ("mixed-*", "mixed-* mixes settings: optim.learning_rate is 0.0003 and 0.001"),
    ],
)
def test_a_side_that_is_none(tmp_path, name, line):
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "empty").mkdir()
    write_run("a")
    write_run("twice-0")
    write_run("twice-1")
    write_run("mixed-0")
    write_run("mixed-1", 1, settings=RATE)
    for names in (("a", name), (name, "a")):
        with pytest.raises(UserError) as caught:
            gpt_jax.compare(*names)
        assert line in str(caught.value)


def test_what_only_rounds_or_measures_mixes_no_settings():
    write_run("a-0")
    write_run("a-1", 1, settings={"mesh.data": 1, "train.log_interval": 5, "data.corpus": "x.txt"})
    assert len(find_side("a-*").runs) == 2


def test_a_folder_whose_name_has_a_patterns_signs_is_itself():
    write_run("a[1]")
    write_run("a1", 1)
    assert [str(run.run_dir) for run in find_side("a[1]").runs] == ["a[1]"]


def test_every_run_is_checked_against_every_other():
    write_side("a", BASE[:2])
    write_run("b-0", 0)
    write_run("b-1", 1, corpus={"sha256": "7" * 64})
    with pytest.raises(UserError, match=r"a-0 and b-1 .* different corpora"):
        check_comparable([find_side("a-*"), find_side("b-*")], parse_metric("final"))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"alpha": 0}, "alpha=0 must be a number between 0 and 1"),
        ({"alpha": 1.0}, "alpha=1.0"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"smallest": 0}, "smallest=0 must be"),
        ({"smallest": float("inf")}, "smallest=inf"),
        ({"baseline": "seed=1"}, "baseline is for a sweep"),
    ],
)
def test_settings_of_a_comparison(values, line):
    write_run("a")
    write_run("b")
    with pytest.raises(ConfigError, match=line):
        gpt_jax.compare("a", "b", **values)


# --- sweeps ---------------------------------------------------------------------------------------


def sweep(rates=(3e-4, 1e-3, 3e-3), losses=(BASE, LOWER, [2.2, 2.3, 2.1, 2.25, 2.15])):
    return write_sweep("sweeps/lr", [
        ({"optim.learning_rate": rate}, seed, loss)
        for rate, row in zip(rates, losses, strict=True)
        for seed, loss in enumerate(row)
    ])  # fmt: skip


def test_a_sweeps_settings_are_compared_with_the_first_and_corrected():
    found = gpt_jax.compare(sweep())
    assert [each.b.label for each in found.items] == [
        "optim.learning-rate=0.001", "optim.learning-rate=0.003"
    ]  # fmt: skip
    assert [each.verdict for each in found.items] == ["better", "worse"]
    alone = [each.estimate.p for each in found.items]
    assert found.items[1].p == pytest.approx(2 * min(alone))
    assert found.items[0].p == pytest.approx(max(2 * min(alone), max(alone)))
    assert found.status == 0
    assert "corrected for 2 comparisons by Holm's method" in str(found)
    assert "by Holm's method, 2 comparisons" in found.items[0].sentence


def test_a_verdict_of_one_comparison_may_be_none_of_several():
    losses = [BASE, [x + y for x, y in zip(BASE, [0, -0.03, -0.03, -0.01, -0.02], strict=True)]]
    for i in range(3):
        losses.append([x + y for x, y in zip(BASE, [0.01, -0.01, i / 100, 0, 0], strict=True)])
    found = gpt_jax.compare(sweep((3e-4, 1e-3, 3e-3, 4e-3, 5e-3), losses))
    assert found.items[0].estimate.p < 0.05 < found.items[0].p
    assert found.items[0].verdict == "not shown"
    assert found.status == 3


def test_the_baseline_may_be_another():
    found = gpt_jax.compare(sweep(), baseline="--optim.learning-rate=3e-3")
    assert {each.a.label for each in found.items} == {"optim.learning-rate=0.003"}
    assert [each.verdict for each in found.items] == ["better", "better"]


@pytest.mark.parametrize(
    ("baseline", "line"),
    [
        ("optim.learning-rate", "is not NAME=VALUE"),
        ("optim.lerning-rate=1", "did you mean optim.learning_rate?"),
        (
            "optim.learning-rate=0.5",
            "names no setting of the sweep; there are: optim.learning-rate",
        ),
        ("optim.learning-rate=x", "takes a number, not 'x'"),
        ("train.batch-size=32", "names several settings"),
    ],
)
def test_a_baseline_that_is_none(baseline, line):
    with pytest.raises(ConfigError) as caught:
        gpt_jax.compare(sweep(), baseline=baseline)
    assert line in str(caught.value)


def test_a_setting_with_a_seed_that_did_not_finish_is_left_out_whole_and_said():
    folder = sweep(losses=(BASE, [*LOWER[:4], None], [2.2, 2.3, 2.1, 2.25, 2.15]))
    found = gpt_jax.compare(folder)
    assert [each.b.label for each in found.items] == ["optim.learning-rate=0.003"]
    assert "optim.learning-rate=0.001 is left out: " in found.notes[0]
    assert "m9 is not finished" in found.notes[0]
    assert found.items[0].comparisons == 1
    shutil.rmtree(folder / "m12")
    with pytest.raises(UserError, match="no two settings to compare"):
        gpt_jax.compare(folder)
    shutil.rmtree(folder / "m0")
    with pytest.raises(UserError, match=r"0.0003 is the baseline, and .*m0 has not begun; name"):
        gpt_jax.compare(folder)


def test_a_member_that_diverged_leaves_its_setting_out():
    folder = sweep()
    record = json.loads((folder / "sweep.json").read_text("utf-8"))
    record["members"][7]["diverged"] = "the loss is nan at step 9"
    (folder / "sweep.json").write_text(json.dumps(record), encoding="utf-8")
    found = gpt_jax.compare(folder)
    assert found.notes == (f"optim.learning-rate=0.001 is left out: {folder}/m7 diverged",)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"values": {"optim.learning_rate": 2}}, "optim.learning_rate of m7 is 2 there and 0.001"),
        ({"values": {"optim.learning_rate": True}}, "optim.learning_rate of m7 is true there"),
        ({"values": {"optim.beta3": 2}}, "optim.beta3 of m7 is 2 there and no setting in"),
        ({"seed": 9}, "seed of m7 is 9 there and 2 in"),
    ],
)
def test_a_member_is_what_its_own_run_says(values, line):
    folder = sweep()
    record = json.loads((folder / "sweep.json").read_text("utf-8"))
    record["members"][7] |= values
    (folder / "sweep.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=rf"sweep.json is damaged: {line}"):
        gpt_jax.compare(folder)


def test_a_sweep_of_seeds_is_a_side():
    write_sweep("base", [({}, seed, loss) for seed, loss in enumerate(BASE)])
    write_sweep("rate", [(RATE, seed, loss) for seed, loss in enumerate(LOWER)])
    found = gpt_jax.compare("base", "rate")
    assert found.status == 0
    assert found.b.label == "rate"
    with pytest.raises(UserError, match="no two settings"):
        gpt_jax.compare("base")
    with pytest.raises(UserError, match="can't be a side: it has 3 settings"):
        gpt_jax.compare("base", sweep())


def test_a_folder_that_is_no_sweep():
    write_run("a")
    with pytest.raises(UserError, match=r"a is no sweep \(it has no sweep.json\); name two sides"):
        gpt_jax.compare("a")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"members": []}', "\x00"])
def test_a_damaged_sweep_is_refused_in_a_line(text):
    folder = sweep()
    (folder / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep.json is damaged"):
        find_settings(folder)


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ([], "is damaged: it has no members"),
        ({}, "is damaged: members is {}, not a list"),
        ([1], r"is damaged: members\[0\] is 1, not"),
        ([{"run_dir": "m0", "seed": 0}], r"is damaged: it has no members\[0\].values"),
        *[
            ([{"run_dir": name, "values": {}, "seed": 0}], "is damaged: .* is not a folder in the")
            for name in ("../runs/a", "/etc", ".", "..", "m0/../..", "")
        ],
    ],
)
def test_members_that_cant_be_are_refused_in_a_line(members, line):
    folder = sweep()
    path = folder / "sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"members": members}))
    with pytest.raises(UserError, match=f"sweep.json {line}"):
        find_settings(folder)


def test_a_sweep_of_a_newer_format_is_named_before_its_fields():
    folder = sweep()
    (folder / "sweep.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match=r"sweep.json has format 2, from a newer gpt_jax; this one"):
        gpt_jax.compare(folder)


# --- what is printed ------------------------------------------------------------------------------


def run_main(capsys, *argv):
    status = main.main(["compare", *map(str, argv)])
    return status, *capsys.readouterr()


def test_the_exit_statuses(capsys):
    a, b = sides()
    assert run_main(capsys, a, b)[0] == 0
    assert run_main(capsys, b, a)[0] == 4
    assert run_main(capsys, "runs/base-0", "runs/change-0")[0] == 3
    assert run_main(capsys, sweep())[0] == 0
    for argv in (
        [], [a], [a, b, a], [a, b, "--metric", "x"], [a, "none-*"], [a, b, "--alpha", "2"],
        [a, b, "--alpha", "x"], [a, b, "--json", "--markdown"], [a, b, "--picture", "x.gif"],
        [a, b, "--picture", "none/x.png"], [a, a], ["--metric"], [a, b, "--smallest", "-1"],
    ):  # fmt: skip
        status, out, err = run_main(capsys, *argv)
        assert (status, out) == (2, ""), argv
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1, argv


def test_unquoted_patterns_are_told_to_be_quoted(capsys):
    sides()
    status, _, err = run_main(capsys, "runs/base-0", "runs/base-1", "runs/change-0")
    assert status == 2
    assert "quote the patterns: compare 'runs/base-*' 'runs/change-*'" in err


def test_the_text_has_the_settings_that_differ_and_no_others(capsys):
    _, out, _ = run_main(capsys, *sides(settings={**RATE, "model.qk_norm": True}))
    lines = [line.split() for line in out.splitlines()]
    assert ["optim.learning-rate", "0.0003", "0.001"] in lines
    assert ["model.qk-norm", "false", "true"] in lines
    assert sum(line[0].count(".") for line in lines if line) == 2
    for words in ("paired t", "95% interval", "sign flips", "correlation of pairs", "0.062"):
        assert words in out
    assert out.endswith("runs/change-* is lower by 0.022 ± 0.010 nats (5 pairs, p = 0.0042)\n")


def test_the_json_is_the_whole_result(capsys):
    a, b = sides()
    status, out, _ = run_main(capsys, a, b, "--json")
    found = json.loads(out)
    assert found["status"] == status == 0
    assert found["differences"] == pytest.approx([-0.02, -0.03, -0.01, -0.02, -0.03])
    assert found["a"]["values"] == BASE
    assert found["settings"] == {"optim.learning_rate": [3e-4, 1e-3]}
    assert found["sentence"] == gpt_jax.compare(a, b).sentence
    assert json.loads(run_main(capsys, sweep(), "--json")[1])["comparisons"][1]["correction"]
    write_run("one", 0)
    alone = run_main(capsys, "one", "runs/change-0", "--json")[1]
    assert "NaN" not in alone
    assert "Infinity" not in alone


def test_the_markdown_is_tables(capsys):
    _, out, _ = run_main(capsys, *sides(), "--markdown")
    assert out.startswith("**runs/change-* is lower by")
    assert "\n| optim.learning-rate | 0.0003 | 0.001 |\n" in out
    assert "|---|---|---|" in run_main(capsys, sweep(), "--markdown")[1]


def test_a_name_with_control_characters_is_shown_not_obeyed(capsys):
    write_run("a\x1b[31m", 0)
    write_run("b", 0)
    assert "\x1b" not in "".join(run_main(capsys, "a\x1b[31m", "b")[1:])


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture(tmp_path, suffix, capsys):
    a, b = sides()
    for names in ((a, b), ("runs/base-0", "runs/change-0"), (sweep(),)):
        status, _, err = run_main(capsys, *names, "--picture", f"p.{suffix}")
        assert status in (0, 3)
        assert err == f"picture: p.{suffix}\n"
        first = (tmp_path / f"p.{suffix}").read_bytes()
        assert first.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
        gpt_jax.compare(*names).plot(tmp_path / f"q.{suffix}")
        assert (tmp_path / f"q.{suffix}").read_bytes() == first


def test_the_bands_are_t_intervals():
    found = gpt_jax.compare(*sides())
    curves = [(g.label, g.steps, g.losses_NS) for g in (found.a, found.b)]
    means, halves = mean_band(found.a.losses_NS, 0.95)
    low = scipy.stats.ttest_1samp(BASE, 0).confidence_interval(0.95).low
    assert means[-1] - halves[-1] == pytest.approx(low + 0.01)  # a fake run's evaluations
    steps, means, halves = difference_band(*curves, True, 0.95)
    assert steps.tolist() == [0, 100, 200, 300, 400, 500]
    assert halves == pytest.approx([found.estimate.half_width] * 6)
    assert means == pytest.approx([found.estimate.mean] * 6)
    welch = scipy.stats.ttest_ind(LOWER, BASE, equal_var=False).confidence_interval(0.95)
    _, means, halves = difference_band(*curves, False, 0.95)
    assert (means - halves)[-1] == pytest.approx(welch.low)


def test_runs_without_a_common_evaluation_have_an_empty_picture(tmp_path):
    write_run("a", 0)
    write_run("b", 0, settings={"train.eval_interval": 250})
    (tmp_path / "b" / "metrics.jsonl").write_text("")
    gpt_jax.compare("a", "b").plot("p.png")
    assert (tmp_path / "p.png").exists()
