"""Each verb, run to its end on folders with a value of another type: a result or one line.

test_fuzz_types.py tries every value with the readers alone. What they let through is used here: a
seeded sample of the values of each file that a verb reads.
"""

import json
import random
import shutil
from pathlib import Path

import pytest
from fake_runs import write_run, write_sweep
from test_fuzz_types import changed

import main
from gpt_jax.config import to_dict

VERDICTS = (0, 3, 4, 5)


def sample_of(name, values, n):
    """Returns n of a file's changes, always the same ones."""
    everything = list(changed(values))
    return random.Random(name).sample(everything, min(n, len(everything)))


def run(capsys, *argv):
    """Runs a command; returns (status, what it printed). What it refuses is one line."""
    status = main.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    if status in (1, 2):
        lines = err.splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], lines
        assert len(lines[-1]) < 1000
    else:
        assert status in VERDICTS, (status, err)
    return status, out


def try_verbs(capsys, path, n, verbs, prepare=lambda: None):
    """Runs verbs on changes of a file; returns {verb: (how many gave a result, how many did not)}.

    Args:
      capsys: pytest's.
      path: of the file; it is written anew at the end. Of lines of JSON the last is changed.
      n: how many changes.
      verbs: {name: words of a command}.
      prepare: is called before each command.
    """
    text = path.read_text("utf-8")
    *before, last = text.splitlines(True) if path.suffix == ".jsonl" else [text]
    counts = {verb: [0, 0] for verb in verbs}
    for made in sample_of(path.name, json.loads(last), n):
        for verb, words in verbs.items():
            path.write_text("".join(before) + json.dumps(made) + "\n", encoding="utf-8")
            prepare()
            try:
                status, _ = run(capsys, *words)
            except Exception as error:
                raise AssertionError(f"{verb}: {path.name}: {json.dumps(made)[:3000]}") from error
            counts[verb][status in (1, 2)] += 1
    path.write_text(text, encoding="utf-8")
    return counts


@pytest.fixture
def tiny(tiny_config, finished_run):
    """A run of 4 steps with checkpoints of 2 and 4."""
    small = {"model.n_head": 1, "model.n_embd": 8, "model.block_size": 4, "train.steps": 4}
    small |= {"train.eval_interval": 2, "train.checkpoint_interval": 2, "train.batch_size": 2}
    small |= {"model.head_bias": False, "model.qkv_bias": True, "sample.max_new_tokens": 4}
    return finished_run(tiny_config, **small, **{"train.final_eval_tokens": 64})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("config.json", 20), ("tokenizer.json", 10), ("summary.json", 3), ("metrics.jsonl", 3),
        ("checkpoints/00000004.json", 3),
    ],
)  # fmt: skip
def test_a_run(tiny, name, n, tmp_path, capsys):
    run_dir, out = Path(tiny.run_dir), tmp_path / "gpt2"
    verbs = {
        "sample": ("sample", "--run-dir", run_dir, "--seed", "1"),
        "eval": ("eval", "--run-dir", run_dir, "--max-tokens", "40"),
        "export": ("export", "--run-dir", run_dir, "--out", out),
        "compare": ("compare", run_dir, write_run(tmp_path / "other", 1)),
    }
    if name == "tokenizer.json":  # its sum, new in this release, would refuse all of them
        values = json.loads((run_dir / "config.json").read_text())
        assert values.pop("tokenizer_sha256")
        (run_dir / "config.json").write_text(json.dumps(values))
    counts = try_verbs(capsys, run_dir / name, n, verbs, lambda: shutil.rmtree(out, True))
    assert all(sum(each) == n for each in counts.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n"), [("config.json", 20), ("metrics.jsonl", 2), ("checkpoints/00000002.json", 10)]
)
def test_a_run_that_was_killed(tiny, name, n, tmp_path, capsys):
    """It is resumed, or refused."""
    whole = Path(tiny.run_dir)
    for path in ("summary.json", "samples.txt", "checkpoints/00000004.json"):
        (whole / path).unlink()
    shutil.rmtree(whole / "checkpoints/00000004")
    run_dir = tmp_path / "resumed"
    words = [
        f"--{key.replace('_', '-')}={str(value).lower() if value in (None, True, False) else value}"
        for key, value in _flat(to_dict(tiny.config)).items()
        if key not in ("run_dir", "model.vocab_size", "train.dropout_masks")
    ]

    def prepare():
        shutil.rmtree(run_dir, ignore_errors=True)
        shutil.copytree(whole, run_dir)

    verbs = {"train": ("train", f"--run-dir={run_dir}", *words)}
    assert sum(try_verbs(capsys, whole / name, n, verbs, prepare)["train"]) == n


def _flat(values, prefix=""):
    flat = {}
    for name, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def test_a_sweep_is_compared(tmp_path, capsys):
    rates = [1e-3, 1e-2]
    folder = write_sweep(
        tmp_path / "sweep",
        [
            ({"optim.learning_rate": rate}, seed, 1.9 + 0.01 * seed - rate)
            for rate in rates
            for seed in (0, 1, 2)
        ],
    )
    path, verbs = folder / "sweep.json", {"compare": ("compare", folder)}
    counts = try_verbs(capsys, path, 25, verbs)["compare"]
    assert min(counts) > 0
