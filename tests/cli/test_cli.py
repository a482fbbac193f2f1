"""The command line: its help, its spelling, and one clear line for every mistake."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest

import gpt_jax
import main
from gpt_jax import devices
from gpt_jax.cli import VERBS
from gpt_jax.config import Config, list_configs, load_config, override
from gpt_jax.config.fields import get_field, iter_fields
from gpt_jax.errors import Interrupted, OutOfTime, TrainingError, UserError
from gpt_jax.input_pipeline import text_corpus

ROOT = Path(__file__).resolve().parents[2]
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 45
TINY = [
    "--model.n-layer=1",
    "--model.n-embd=16",
    "--model.n-head=2",
    "--model.block-size=8",
    "--train.batch-size=4",
    "--train.steps=2",
    "--train.eval-interval=2",
    "--train.eval-batches=1",
    "--train.checkpoint-interval=2",
    "--sample.max-new-tokens=5",
]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty working folder, no server for oz, and the devices left as they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "request_cpu_devices", lambda *args, **kwargs: None)
    monkeypatch.setattr(text_corpus, "checkout_dir", lambda: None)
    monkeypatch.setattr(text_corpus, "TRIES", 1)
    monkeypatch.setenv("GPT_JAX_DATA", str(tmp_path / "texts"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/pg55.txt"
    monkeypatch.setenv("GPT_JAX_OZ_URL", url)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def no_jax(monkeypatch):
    """Importing what computes is an error: a mistake is found before that."""
    for name in ("gpt_jax.training.trainer", "gpt_jax.run.load", "gpt_jax.inference.generation"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def no_training(monkeypatch):
    """Computing is an error."""
    from gpt_jax.training import trainer as loop

    def fail(*args):
        raise AssertionError("training has begun")

    monkeypatch.setattr(loop, "Trainer", fail)


@pytest.fixture
def train_calls(monkeypatch):
    """Stands in for training; a list of the configs that it was called with."""
    calls: list[Config] = []
    loop = types.ModuleType("gpt_jax.training.trainer")
    loop.train = calls.append
    monkeypatch.setitem(sys.modules, "gpt_jax.training.trainer", loop)
    return calls


@pytest.fixture
def mistake(capsys, tmp_path):
    """Runs a command that must end with status 2, one line and no new file; returns the line."""

    def run(*argv: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        status = main.main(list(argv))
        out, err = capsys.readouterr()
        assert status == 2, out + err
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before
        return err.removeprefix("error: ").rstrip("\n")

    return run


# --- help -----------------------------------------------------------------------------------------


def help_text(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main.main(list(argv))
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return " ".join(out.split())


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["train", "--help"]])
def test_help_lists_verbs_configs_and_every_setting_with_its_default(capsys, argv):
    text = help_text(capsys, *argv)
    for verb in VERBS:
        assert f"{verb} {VERBS[verb]}" in text
    for name, line in list_configs().items():
        assert line
        assert f"{name} {line}" in text
    nano = load_config("nano")
    for name, _, field in iter_fields(Config):
        if field.metadata["internal"]:
            is_option = f"--{name.replace('_', '-')} " in text
            assert is_option == (name in ("branch_from", "at_step"))  # options of `train` itself
            continue
        default = get_field(nano, name)
        shown = field.metadata["unset"] if default is None else default
        option = "--" + name.replace("_", "-")
        meaning = " ".join(field.metadata["help"].split())
        assert f"{option} X {meaning} (default: {shown}".rstrip() in text


@pytest.mark.parametrize(
    "option",
    [
        "--model.n-layer",
        "--model.n-head",
        "--model.n-embd",
        "--model.block-size",
        "--model.dropout",
        "--model.attention-scale",
        "--data.corpus",
        "--data.train-fraction",
        "--optim.learning-rate",
        "--optim.weight-decay",
        "--train.batch-size",
        "--train.steps",
        "--train.eval-interval",
        "--train.eval-batches",
        "--train.checkpoint-interval",
        "--seed",
        "--run-dir",
    ],
)
def test_settings_are_named_in_the_fields_words(capsys, option):
    assert f"{option} X " in help_text(capsys, "--help")


def test_help_shows_the_defaults_of_the_config_named(capsys):
    text = help_text(capsys, "--config", "nano_original", "--help")
    assert "(default: runs/nano_original)" in text
    assert "(default: runs/nano)" not in text


def test_help_shows_the_defaults_of_a_config_file(capsys, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from gpt_jax.config import *\ndef get_config(): return Config(seed=77)\n")
    assert "(default: 77)" in help_text(capsys, "--config", str(path), "--help")
    assert "(default: 77)" in help_text(capsys, "plan", "--config", str(path), "--help")
    path.write_text("raise ValueError")
    assert "configs:" in help_text(capsys, "--config", str(path), "--help")


def test_help_answers_whatever_else_is_wrong(capsys):
    assert "configs:" in help_text(capsys, "--config", "nnao", "--help")


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        (
            "sample",
            "--run-dir --prompt --max-new-tokens --temperature --top-k --top-p --num-samples "
            "--window --seed --debug",
        ),
        ("eval", "--run-dir --split --stride --data.corpus --max-tokens --json --debug"),
    ],
)
def test_the_other_verbs_have_help_of_their_own(capsys, verb, options):
    text = help_text(capsys, verb, "--help")
    assert text.startswith(f"usage: python main.py {verb} ")
    assert "(default: runs/nano)" in text
    for option in options.split():
        assert f" {option} " in text


@pytest.mark.parametrize("door", ["main.py", "gpt_jax/__main__.py"])
@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_the_terminal_and_breaks_no_word(capsys, monkeypatch, verb, columns, door):
    monkeypatch.setattr(sys, "argv", [door])
    pages = []
    for width in (columns, 10_000):
        monkeypatch.setenv("COLUMNS", str(width))
        with pytest.raises(SystemExit):
            main.main([verb, "--help"])
        pages.append(capsys.readouterr().out)
    assert max(map(len, pages[0].splitlines())) <= columns
    assert set(pages[0].split()) == set(pages[1].split())


@pytest.mark.parametrize(
    "term",
    [
        "RoPE",
        "GQA",
        "grouped-query attention",
        "weight tying",
        "gradient accumulation",
        "mixed precision",
        "activation checkpointing",
        "flash attention",
        "data parallel",
        "fully sharded data parallel",
        "tensor parallel",
        "sequence parallel",
        "resume",
        "fine-tune",
        "nucleus sampling",
        "heartbeat",
    ],
)
def test_a_newcomer_finds_the_fields_terms(capsys, term):
    assert term in help_text(capsys, "--help")


def test_every_setting_that_may_be_unset_says_what_that_means():
    from data.config import PrepareConfig
    from gpt_jax.parallel.multihost import Launch

    for config_type in (Config, Launch, PrepareConfig):
        for name, hint, field in iter_fields(config_type):
            optional = type(None) in typing.get_args(hint)
            assert bool(field.metadata["unset"]) == optional, name
            assert "none is" not in field.metadata["help"], name


def test_an_unset_default_is_shown_in_words(capsys):
    text = help_text(capsys, "--help")
    assert "must divide batch_size (default: the whole batch)" in text
    assert "number of key/value heads" in text
    assert "(default: none)" not in text.replace("parameters (default: none)", "")  # model.remat


def test_help_and_mistakes_import_nothing_slow():
    program = """
import contextlib, io, sys
import main
from gpt_jax.cli import VERBS
verbs = [verb for verb in VERBS if verb != "prepare"]  # whose settings need numpy
for argv in (["--help"], *([verb, "--help"] for verb in verbs)):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main.main(argv)
        except SystemExit as end:
            assert end.code == 0, argv
    assert "--debug" in out.getvalue()
for argv in (["--train.steps", "0"], ["trian"], ["sample", "--top-p", "2"], ["eval", "--x"]):
    with contextlib.redirect_stderr(io.StringIO()):
        assert main.main(argv) == 2, argv
slow = "jax jaxlib flax optax orbax numpy scipy matplotlib rich requests tensorboardX tiktoken "
slow += "tokenizers"
slow = slow.split()
print(sorted(set(slow) & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


# --- what reaches training ------------------------------------------------------------------------


def test_train_is_the_default_verb_and_nano_the_default_config(train_calls):
    assert main.main([]) == 0
    assert main.main(["train"]) == 0
    assert main.main(["--config", "nano"]) == 0
    assert train_calls == [load_config("nano")] * 3


@pytest.mark.parametrize(
    "argv",
    [
        ["--model.n-layer", "5"],
        ["--model.n_layer", "5"],
        ["--model.n-layer=5"],
        ["train", "--model.n_layer=5"],
    ],
)
def test_hyphens_and_underscores_are_the_same(train_calls, argv):
    assert main.main(argv) == 0
    (config,) = train_calls
    assert config == override(load_config("nano"), {"model.n_layer": 5})
    assert config.model.n_layer == 5


def test_values_keep_their_underscores_and_hyphens(train_calls):
    assert main.main(["--run-dir=my_runs/a-b_c", "--sample.prompt", "a_b-c"]) == 0
    assert train_calls[0].run_dir == "my_runs/a-b_c"
    assert train_calls[0].sample.prompt == "a_b-c"


def test_the_last_of_two_wins_and_none_is_none(train_calls):
    argv = ["--model.attention-scale=2", "--model.attention-scale=none", "--data.corpus=oz"]
    assert main.main(argv) == 0
    assert train_calls[0].model.attention_scale is None
    assert train_calls[0].data.fallback_corpus is None


def test_a_config_file_of_the_users_own(train_calls, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from gpt_jax.config import Config\ndef get_config(): return Config(seed=3)\n"
    )
    assert main.main(["--config", "mine.py", "--train.steps", "9"]) == 0
    assert (train_calls[0].seed, train_calls[0].train.steps) == (3, 9)


class JaxRuntimeError(RuntimeError):
    """As jax's, which these tests don't import."""


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("mend it"), 2, "error: mend it\n"),
        (TrainingError("diverged"), 1, "error: diverged\n"),
        (Interrupted(15, "saved at step 3"), 143, "saved at step 3\n"),
        (Interrupted(2, "saved at step 3"), 130, "saved at step 3\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"),
            1,
            "error: the memory is too small: RESOURCE_EXHAUSTED: Out of memory allocating 9 "
            "bytes.; use a device with more, or JAX_PLATFORMS=cpu for the machine's own memory\n",
        ),
        (OutOfTime("saved at step 3"), 75, "saved at step 3\n"),
    ],
)
def test_every_bad_end_has_its_status_and_its_line(monkeypatch, capsys, error, status, line):
    loop = types.ModuleType("gpt_jax.training.trainer")

    def train(config):
        raise error

    loop.train = train
    monkeypatch.setitem(sys.modules, "gpt_jax.training.trainer", loop)
    assert main.main([]) == status
    assert capsys.readouterr().err == line
    with pytest.raises(type(error)):
        main.main(["--debug"])


# --- mistakes in settings -------------------------------------------------------------------------


@pytest.mark.usefixtures("no_jax")
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["--model.n-embd", "100", "--model.n-head", "3"],
            "model.n_embd=100 must be divisible by model.n_head=3; try n_embd=99 or 102",
        ),
        (["--train.steps", "0"], "train.steps=0 must be a whole number of at least 1"),
        (["--train.steps", "-5"], "train.steps=-5 must be a whole number of at least 1"),
        (["--train.batch-size=0"], "train.batch_size=0 must be a whole number of at least 1"),
        (["--model.n-layer=0"], "model.n_layer=0 must be a whole number of at least 1"),
        (["--model.block-size=-8"], "model.block_size=-8 must be a whole number of at least 1"),
        (["--optim.learning-rate=0"], "optim.learning_rate=0.0 must be a finite number above 0"),
        (["--optim.learning-rate=nan"], "optim.learning_rate=nan must be a finite number above 0"),
        (["--optim.learning-rate=inf"], "optim.learning_rate=inf must be a finite number above 0"),
        (
            ["--optim.learning-rate", "-1e-3"],
            "optim.learning_rate=-0.001 must be a finite number above 0",
        ),
        (
            ["--optim.weight-decay=-0.1"],
            "optim.weight_decay=-0.1 must be a finite number of at least 0",
        ),
        (["--model.dropout", "1"], "model.dropout=1.0 must be a number in [0, 1)"),
        (["--model.dropout", "-0.1"], "model.dropout=-0.1 must be a number in [0, 1)"),
        (
            ["--data.train-fraction", "1"],
            "data.train_fraction=1.0 must be a number between 0 and 1, both excluded",
        ),
        (
            ["--data.train-fraction", "0"],
            "data.train_fraction=0.0 must be a number between 0 and 1, both excluded",
        ),
        (
            ["--data.vocab-size", "256"],
            "data.vocab_size=256 must be a whole number of at least 257",
        ),
        (
            ["--data.tokenizer", "bpe"],
            "data.tokenizer=bpe needs data.vocab_size, the number of tokens to learn; try 1024",
        ),
        (["--sample.top-p", "1.5"], "sample.top_p=1.5 must be a number in (0, 1]"),
        (["--sample.window", "wide"], "sample.window='wide' must be one of exact, refill"),
        (["--seed", "-1"], "seed=-1 must be a whole number in [0, 2**32)"),
        (["--train.steps", "many"], "--train.steps takes a whole number, not 'many'"),
        (["--train.steps", "2.5"], "--train.steps takes a whole number, not '2.5'"),
        (["--model.dropout", "some"], "--model.dropout takes a number, not 'some'"),
        (["--run-dir", ""], "run_dir is empty; give a folder such as runs/nano"),
        (
            ["--data.corpus", ""],
            "data.corpus is empty; give a name (oz, shakespeare, python-manual) or a path",
        ),
        (
            ["--train.steps"],
            "argument --train.steps: expected one argument; a value that begins with - is written "
            "as --setting=-value (see python main.py train --help)",
        ),
        (
            ["--model.n-layers", "3"],
            "unknown setting '--model.n-layers'; did you mean --model.n-layer? "
            "(see python main.py train --help)",
        ),
        (
            ["--model.n_layers=3"],
            "unknown setting '--model.n-layers'; did you mean --model.n-layer? "
            "(see python main.py train --help)",
        ),
        (
            ["--model.vocab-size", "3"],
            "unknown setting '--model.vocab-size'; did you mean --model.block-size? "
            "(see python main.py train --help)",
        ),
        (
            ["--zzzzzzzzzzzz", "3"],
            "unknown setting '--zzzzzzzzzzzz' (see python main.py train --help)",
        ),
        (["train", "nano"], "unknown argument 'nano'; did you mean --config nano?"),
        (
            ["trian"],
            "unknown verb 'trian'; did you mean train?; there are train, sweep, sample, eval, "
            "compare, trial, report, prepare, export, replay, verify, plan",
        ),
        (
            ["qqqq"],
            "unknown verb 'qqqq'; there are train, sweep, sample, eval, compare, trial, report, "
            "prepare, export, replay, verify, plan",
        ),
        (["nano"], "unknown verb 'nano'; did you mean --config nano?"),
        (
            ["--config", "nnao"],
            "unknown config 'nnao'; did you mean nano?; there are nano, nano_original, or give "
            "the path of a file",
        ),
        (
            ["--config", "absent.py"],
            "config file absent.py does not exist; give another, or a name from --help",
        ),
        (
            ["--config"],
            "argument --config: expected one argument; a value that begins with - is written as "
            "--setting=-value (see python main.py train --help)",
        ),
    ],
)
def test_a_setting_that_breaks_a_rule_is_one_line(mistake, argv, line):
    if "nnao" in argv:
        known = ", ".join(list_configs())
        line = line.replace("nano, nano_original", known)
    assert mistake(*argv) == line


@pytest.mark.usefixtures("no_jax")
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0", "fails: ZeroDivisionError: division by zero"),
        ("x =", "fails: SyntaxError: "),
        ("raise ValueError('two\\nlines')", "fails: ValueError: two lines"),
        ("raise SystemExit(0)", "fails: SystemExit: 0"),
        ("def get_config(): return 3", "get_config() must return a gpt_jax Config, not 3"),
        (
            "from gpt_jax.config import *\ndef get_config(): return Config(seed=-1)",
            "seed=-1 must be a whole number",
        ),
        (
            "from gpt_jax.config_files import load_config",
            "gpt_jax.config_files is now gpt_jax.config; write: "
            "from gpt_jax.config import load_config",
        ),
    ],
)
def test_a_config_file_that_fails_is_one_line(mistake, tmp_path, source, reason):
    (tmp_path / "mine.py").write_text(source)
    line = mistake("--config", "mine.py")
    assert line.startswith("config file mine.py")
    assert reason in line


@pytest.mark.usefixtures("no_jax")
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--temperature", "-1"], "sample.temperature=-1.0 must be a finite number of at least 0"),
        (["--temperature", "nan"], "sample.temperature=nan must be a finite number of at least 0"),
        (["--top-p", "0"], "sample.top_p=0.0 must be a number in (0, 1]"),
        (["--top-p", "1.1"], "sample.top_p=1.1 must be a number in (0, 1]"),
        (["--top-k", "0"], "sample.top_k=0 must be a whole number of at least 1"),
        (["--max-new-tokens", "0"], "sample.max_new_tokens=0 must be a whole number of at least 1"),
        (["--num-samples", "0"], "sample.num_samples=0 must be a whole number of at least 1"),
        (["--window", "no"], "sample.window='no' must be one of exact, refill"),
        (["--seed", "-1"], "seed=-1 must be a whole number in [0, 2**32)"),
        (
            ["--seed", "x"],
            "argument --seed: invalid int value: 'x' (see python main.py sample --help)",
        ),
        (
            ["--temprature", "1"],
            "unknown setting '--temprature'; did you mean --temperature? "
            "(see python main.py sample --help)",
        ),
    ],
)
def test_a_sample_setting_that_breaks_a_rule_is_one_line(mistake, argv, line):
    assert mistake("sample", *argv) == line


# --- mistakes in texts and folders ----------------------------------------------------------------


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            "absent",
            "corpus 'corpus' is neither a file nor a name; the names are oz, shakespeare "
            "and python-manual",
        ),
        (
            "folder",
            "corpus corpus is a folder; give the path of a text file, or make a corpus of its "
            "files: python main.py prepare --input 'corpus/*.txt' --out FOLDER",
        ),
        (b"", "corpus corpus is empty; give a text file"),
        (b"\x89PNG\0", "corpus corpus looks binary (a zero byte at 4); give a text"),
        (
            "é".encode("latin-1"),
            "corpus corpus is not UTF-8 (byte 0xe9 at 0); convert it, for example with: "
            "iconv -f latin1 -t utf-8",
        ),
        (
            b"abcdefghij",
            "the corpus is too short: 8 of its 10 tokens are for train, and model.block_size=8 "
            "needs 9; use a longer text, a smaller block_size or another data.train_fraction",
        ),
        (
            b"abcdefghij" * 4,
            "the corpus is too short: 8 of its 40 tokens are for val, and model.block_size=8 "
            "needs 9; use a longer text, a smaller block_size or another data.train_fraction",
        ),
    ],
)
def test_a_corpus_that_cannot_be_used_is_one_line(mistake, tmp_path, content, line):
    path = tmp_path / "corpus"
    if content == "folder":
        path.mkdir()
    elif content != "absent":
        path.write_bytes(content)
    assert mistake("--data.corpus", "corpus", "--run-dir", "run", *TINY) == line


@pytest.mark.usefixtures("no_training")
def test_oz_asked_for_and_not_to_be_had_is_one_line_with_the_ways_out(mistake, tmp_path):
    line = mistake("--data.corpus", "oz", "--run-dir", "run", *TINY)
    assert line.startswith(f"corpus oz could not be downloaded ({os.environ['GPT_JAX_OZ_URL']}: ")
    assert line.endswith(
        f"; put the book at {tmp_path}/texts/wizard_of_oz.txt, or train on another text with "
        "--data.corpus python-manual or --data.corpus PATH"
    )


@pytest.mark.usefixtures("no_training")
def test_a_run_folder_that_is_a_file_is_one_line(mistake, book, tmp_path):
    (tmp_path / "run").write_text("mine")
    line = mistake("--data.corpus", book, "--run-dir", "run", *TINY)
    assert line == "run_dir run is a file; choose another --run-dir"
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.usefixtures("no_training")
def test_a_run_folder_that_holds_other_files_is_one_line(mistake, book, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    line = mistake("--data.corpus", book, "--run-dir", "run", *TINY)
    assert line == (
        "run_dir run holds other files (thesis.tex) and no config.json; choose another --run-dir"
    )
    assert (tmp_path / "run" / "thesis.tex").read_text() == "mine"


@pytest.mark.usefixtures("no_training")
def test_a_run_folder_below_a_file_is_one_line(mistake, book, tmp_path):
    (tmp_path / "file").write_text("mine")
    line = mistake("--data.corpus", book, "--run-dir", "file/run", *TINY)
    assert line == "cannot make the run folder file/run: Not a directory; choose another --run-dir"


@pytest.mark.usefixtures("no_training")
@pytest.mark.usefixtures("no_training")
def test_a_run_folder_with_too_long_a_name_is_one_line(mistake, book):
    assert "File name too long" in mistake("--data.corpus", book, "--run-dir", "r" * 300, *TINY)


@pytest.mark.usefixtures("no_training")
def test_a_training_prompt_with_unknown_characters_is_one_line(mistake, book):
    line = mistake("--data.corpus", book, "--run-dir=run", *TINY, "--sample.prompt", "Größe 3")
    assert line.startswith(
        "the vocabulary lacks '3' (U+0033), 'G' (U+0047), 'ß' (U+00DF), 'ö' (U+00F6); it has  .T"
    )


@pytest.mark.usefixtures("no_training")
def test_a_training_top_k_beyond_the_vocabulary_is_one_line(mistake, book):
    n = len(set(TEXT))
    line = mistake("--data.corpus", book, "--run-dir=run", *TINY, f"--sample.top-k={n + 1}")
    assert line == f"top_k={n + 1} is above the vocabulary of {n} tokens; use none for all of them"


# --- mistakes with a run --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, made by the command itself: (its folder, its text)."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "book.txt"
    text.write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "request_cpu_devices", lambda *args, **kwargs: None)
        argv = ["train", "--data.corpus", str(text), "--run-dir", str(folder / "run"), *TINY]
        assert main.main(argv) == 0
    return folder / "run", text


@pytest.fixture
def run_dir(trained, tmp_path):
    """A copy of the run, to be damaged."""
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_an_unknown_character_of_a_prompt_is_named(mistake, trained):
    line = mistake("sample", "--run-dir", str(trained[0]), "--prompt", "Zoë")
    assert line.startswith("the vocabulary lacks 'Z' (U+005A), 'ë' (U+00EB); it has  .T")


@pytest.mark.slow
def test_top_k_beyond_the_vocabulary_is_refused(mistake, trained):
    n = len(set(TEXT))
    line = mistake("sample", "--run-dir", str(trained[0]), "--top-k", str(n + 1))
    assert line == f"top_k={n + 1} is above the vocabulary of {n} tokens; use none for all of them"
    assert main.main(["sample", "--run-dir", str(trained[0]), "--top-k", str(n)]) == 0


def sample(capsys, run_dir, *argv) -> str:
    capsys.readouterr()
    assert main.main(["sample", "--run-dir", str(run_dir), *argv]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_a_sample_is_the_prompt_and_as_many_tokens_as_asked_for(capsys, trained):
    text = sample(capsys, trained[0], "--prompt", "The fox", "--max-new-tokens", "40")
    assert text.startswith("The fox")
    assert len(text) == len("The fox") + 40 + len("\n")


@pytest.mark.slow
def test_a_seed_gives_the_same_text_again_and_temperature_0_needs_none(capsys, trained):
    options = ["--prompt", "The", "--max-new-tokens", "30"]
    one = sample(capsys, trained[0], *options, "--seed", "1")
    assert sample(capsys, trained[0], *options, "--seed", "1") == one
    assert sample(capsys, trained[0], *options, "--seed", "2") != one
    greedy = [*options, "--temperature", "0"]
    assert sample(capsys, trained[0], *greedy, "--seed", "1") == sample(
        capsys, trained[0], *greedy, "--seed", "2"
    )


@pytest.mark.slow
def test_a_sample_without_a_seed_draws_one_and_names_it(capsys, trained):
    options = ["--prompt", "The", "--max-new-tokens", "60"]
    texts, seeds = [], []
    for _ in range(2):
        assert main.main(["sample", "--run-dir", str(trained[0]), *options]) == 0
        out, err = capsys.readouterr()
        texts.append(out)
        seeds.append(re.fullmatch(r"seed (\d+) \(--seed \1 writes this text again\)\n", err)[1])
    assert texts[0] != texts[1]
    assert seeds[0] != seeds[1]
    assert sample(capsys, trained[0], *options, "--seed", seeds[0]) == texts[0]


class Terminal(io.StringIO):
    """A standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False])
def test_generated_text_is_made_visible_on_a_terminal_alone(monkeypatch, trained, terminal):
    monkeypatch.setattr(
        "gpt_jax.inference.generation.stream", lambda *a, **k: iter([["a\x1b[31m\x07\n"]])
    )
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    assert main.main(["sample", "--run-dir", str(trained[0]), "--prompt", "The"]) == 0
    shown = "a\\x1b[31m\\x07\n" if terminal else "a\x1b[31m\x07\n"
    assert out.getvalue() == f"The{shown}\n"


@pytest.mark.slow
def test_several_samples_are_set_apart(capsys, trained):
    text = sample(capsys, trained[0], "--prompt", "The", "--num-samples", "3")
    assert [line for line in text.splitlines() if line.startswith("---")] == [
        "--- 2 ---",
        "--- 3 ---",
    ]
    assert text.count("The") >= 3


@pytest.mark.slow
def test_an_empty_prompt_says_what_happens(capsys, trained):
    argv = ["sample", "--run-dir", str(trained[0]), "--prompt", "", "--max-new-tokens", "9"]
    assert main.main([*argv, "--seed", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == "note: the prompt is empty; starting from a line break\n"
    assert len(out) == 9 + len("\n")


@pytest.mark.parametrize("content", [b"The dog\r\n", b"The dog\n", b"The dog"])
def test_a_prompt_may_come_from_standard_input(capsys, monkeypatch, trained, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    text = sample(capsys, trained[0], "--prompt", "-", "--max-new-tokens", "4")
    assert text.startswith("The dog")
    assert len(text) == len("The dog") + 4 + len("\n")


def test_standard_input_that_is_not_utf8_is_one_line(mistake, monkeypatch, trained):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    line = mistake("sample", "--run-dir", str(trained[0]), "--prompt", "-")
    assert "is not UTF-8" in line
    assert "0xe9" in line


def test_the_reader_may_go_away(monkeypatch, trained):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    assert main.main(["sample", "--run-dir", str(trained[0]), "--prompt", "The"]) == 0


def test_eval_prints_the_same_figures_as_text_and_json(capsys, trained):
    assert main.main(["eval", "--run-dir", str(trained[0])]) == 0
    text = capsys.readouterr().out
    assert main.main(["eval", "--run-dir", str(trained[0]), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["step"] == 2
    assert record["split"] == "val"
    assert record["stride"] == 8
    assert record["tokens_predicted"] == len(TEXT) - int(0.8 * len(TEXT)) - 1
    assert record["corpus"]["name"] == str(trained[1])
    assert f"{record['nats_per_token']:.4f} nats per token" in text
    assert f"{record['bits_per_byte']:.4f} bits per byte" in text


@pytest.mark.parametrize("verb", ["sample", "eval", "export"])
def test_a_checkpoint_is_named_by_step_or_as_the_best(capsys, mistake, trained, tmp_path, verb):
    argv = [verb, "--run-dir", str(trained[0])]
    argv += {"sample": ["--prompt", "a", "--max-new-tokens", "3"], "eval": []}.get(verb, [])
    if verb != "export":  # the model is none that GPT-2's architecture can hold
        for which in ("newest", "best", "2"):
            assert main.main([*argv, "--checkpoint", which]) == 0
        capsys.readouterr()
    argv += ["--out", str(tmp_path / "out")] if verb == "export" else []
    assert mistake(*argv, "--checkpoint", "7") == (
        f"{trained[0]} has no checkpoint of step 7; it has those of 2 (see --train.keep-interval)"
    )
    assert mistake(*argv, "--checkpoint", "last") == (
        "--checkpoint, if neither newest nor best, takes a whole number, not 'last'"
    )


def test_eval_has_the_train_split_and_a_stride(capsys, trained):
    argv = ["eval", "--run-dir", str(trained[0]), "--split=train", "--stride=3", "--json"]
    assert main.main(argv) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["split"], record["stride"]) == ("train", 3)
    assert record["tokens_predicted"] == int(0.8 * len(TEXT)) - 1


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--stride", "0"], "stride=0 must be between 1 and block_size=8"),
        (["--stride", "9"], "stride=9 must be between 1 and block_size=8"),
        (
            ["--split", "test"],
            "argument --split: invalid choice: 'test' (choose from ",
        ),
        (["--data.corpus", "absent"], "corpus 'absent' is neither a file nor a name"),
        (
            ["--josn"],
            "unknown setting '--josn'; did you mean --json? (see python main.py eval --help)",
        ),
    ],
)
def test_a_mistake_of_eval_is_one_line(mistake, trained, argv, line):
    assert mistake("eval", "--run-dir", str(trained[0]), *argv).startswith(line)


def test_eval_on_another_text_is_refused(mistake, trained, tmp_path):
    (tmp_path / "other.txt").write_text(TEXT[:-1])
    line = mistake("eval", "--run-dir", str(trained[0]), "--data.corpus", "other.txt")
    assert line.startswith(f"{trained[0]} was trained on {trained[1]} with sha256 ")
    assert "not the same text; name the old one with --data.corpus PATH" in line


def test_eval_finds_a_corpus_that_has_moved(trained, tmp_path):
    (tmp_path / "moved.txt").write_text(TEXT)
    assert main.main(["eval", "--run-dir", str(trained[0]), "--data.corpus", "moved.txt"]) == 0


@pytest.mark.parametrize("verb", ["sample", "eval"])
def test_a_folder_that_is_no_run_is_one_line(mistake, tmp_path, verb):
    (tmp_path / "empty").mkdir()
    way_out = "train one with: python main.py train"
    assert (
        mistake(verb, "--run-dir", "absent") == f"absent is not a run: it does not exist; {way_out}"
    )
    assert (
        mistake(verb, "--run-dir", "empty")
        == f"empty is not a run: it has no config.json; {way_out}"
    )
    assert mistake(verb) == f"runs/nano is not a run: it does not exist; {way_out}"
    (tmp_path / "afile").touch()
    assert mistake(verb, "--run-dir", "afile") == f"afile is not a run: it is a file; {way_out}"


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as done:
        main.main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"gpt_jax {gpt_jax.__version__}\n"


# --- damaged runs ---------------------------------------------------------------------------------


def edit_config(run_dir, edit) -> None:
    path = run_dir / "config.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def edit_tokenizer(run_dir, edit) -> None:
    path = run_dir / "tokenizer.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def replace_a_character(values) -> None:
    *others, last = values["vocabulary"]
    values["vocabulary"] = "".join([*others, chr(ord(last) + 1)])


def truncate_checkpoint(run_dir) -> None:
    files = [path for path in (run_dir / "checkpoints" / "00000002").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])


DAMAGES = {
    "config missing": (
        lambda run: (run / "config.json").unlink(),
        "{run} is not a run: it has no config.json; train one with: python main.py train",
    ),
    "config is no JSON": (
        lambda run: (run / "config.json").write_text('{"format": 1,'),
        "{run}/config.json is damaged: ",
    ),
    "config is not UTF-8": (
        lambda run: (run / "config.json").write_bytes(b"\xff\xff"),
        "{run}/config.json is damaged: 'utf-8' codec can't decode byte 0xff",
    ),
    "config is a list": (
        lambda run: (run / "config.json").write_text("[]"),
        "{run}/config.json is damaged: it is not a JSON object",
    ),
    "config nested without end": (
        lambda run: (run / "config.json").write_text("[" * 100_000),
        "{run}/config.json is damaged: ",
    ),
    "newer format": (
        lambda run: edit_config(run, lambda values: values.update(format=2)),
        "{run}/config.json has format 2, from a newer gpt_jax; this one reads up to 1",
    ),
    "no format": (
        lambda run: edit_config(run, lambda values: values.pop("format")),
        "{run}/config.json is damaged: it has no format",
    ),
    "unknown setting": (
        lambda run: edit_config(run, lambda values: values["model"].update(n_layers=3)),
        "{run}/config.json is damaged: unknown setting 'model.n_layers'; did you mean n_layer?",
    ),
    "broken rule": (
        lambda run: edit_config(run, lambda values: values["model"].update(n_head=3)),
        "{run}/config.json is damaged: model.n_embd=16 must be divisible by model.n_head=3; "
        "try n_embd=15 or 18",
    ),
    "no corpus": (
        lambda run: edit_config(run, lambda values: values.pop("corpus")),
        "{run}/config.json is damaged: it has no corpus",
    ),
    "no vocabulary size": (
        lambda run: edit_config(run, lambda values: values["model"].pop("vocab_size")),
        "{run}/config.json is damaged: it has no model.vocab_size",
    ),
    "tokenizer missing": (
        lambda run: (run / "tokenizer.json").unlink(),
        "cannot read the tokenizer {run}/tokenizer.json: ",
    ),
    "tokenizer damaged": (
        lambda run: (run / "tokenizer.json").write_text('{"kind": "char", "vocabulary": "ba"}'),
        "cannot read the tokenizer {run}/tokenizer.json: a vocabulary is at least one character",
    ),
    "tokenizer of another run, in a folder of a release without its sum": (
        lambda run: (
            edit_config(run, lambda values: values.pop("tokenizer_sha256")),
            edit_tokenizer(run, lambda values: values.update(vocabulary="ab")),
        ),
        "{run} is damaged: its tokenizer has 2 tokens, its config ",
    ),
    "tokenizer of another run, as large": (
        lambda run: edit_tokenizer(run, replace_a_character),
        "{run}/tokenizer.json is not the file that was written with {run}; restore it",
    ),
    "tokenizer written anew, with other spaces": (
        lambda run: edit_tokenizer(run, lambda values: None),
        "{run}/tokenizer.json is not the file that was written with {run}; restore it",
    ),
    "metrics damaged": (
        lambda run: (run / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n{"step": 2}\n'),
        "{run}/metrics.jsonl is damaged at line 2: 'nonsense'",
    ),
    "summary damaged": (
        lambda run: (run / "summary.json").write_text("[]"),
        "{run}/summary.json is damaged: it is not a JSON object",
    ),
    "checkpoint truncated": (
        truncate_checkpoint,
        "checkpoint {run}/checkpoints/00000002 is damaged: ",
    ),
    "checkpoint without its files": (
        lambda run: shutil.rmtree(run / "checkpoints" / "00000002"),
        "checkpoint {run}/checkpoints/00000002 is damaged: ",
    ),
    "manifest damaged": (
        lambda run: (run / "checkpoints" / "00000002.json").write_text("{"),
        "checkpoint {run}/checkpoints/00000002 is damaged: its manifest can't be read",
    ),
    "checkpoints missing": (
        lambda run: shutil.rmtree(run / "checkpoints"),
        "{run} has no checkpoint yet; resume it with the same command",
    ),
    "another size of model": (
        lambda run: edit_config(run, lambda values: values["model"].update(n_embd=32)),
        "checkpoint {run}/checkpoints/00000002 does not fit its config: ",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_run_is_one_line(mistake, run_dir, what):
    damage, line = DAMAGES[what]
    damage(run_dir)
    for verb in ("sample", "eval"):
        assert mistake(verb, "--run-dir", str(run_dir)).startswith(line.format(run=run_dir))


def test_a_run_of_a_release_without_the_tokenizers_sum_is_read(run_dir, capsys):
    edit_config(run_dir, lambda values: values.pop("tokenizer_sha256"))
    edit_tokenizer(run_dir, lambda values: None)
    assert main.main(["eval", "--run-dir", str(run_dir), "--max-tokens", "10"]) == 0
    assert "nats per token" in capsys.readouterr().out


def test_a_truncated_checkpoint_names_its_file_and_that_none_is_left(mistake, run_dir):
    truncate_checkpoint(run_dir)
    line = mistake("sample", "--run-dir", str(run_dir))
    assert line.endswith(" has changed since it was written; no valid checkpoint remains")


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("what", ["newer format", "unknown setting", "tokenizer missing"])
def test_training_goes_on_with_no_damaged_run(mistake, run_dir, trained, what):
    damage, line = DAMAGES[what]
    damage(run_dir)
    argv = ["--data.corpus", str(trained[1]), "--run-dir", str(run_dir), *TINY]
    assert mistake(*argv).startswith(line.format(run=run_dir))


@pytest.mark.usefixtures("no_training")
def test_a_finished_run_with_a_damaged_summary_is_one_line(mistake, run_dir, trained):
    (run_dir / "summary.json").write_text('{"step": 2}')
    argv = ["--data.corpus", str(trained[1]), "--run-dir", str(run_dir), *TINY]
    assert mistake(*argv).startswith(f"{run_dir}/summary.json is damaged: ")


@pytest.mark.usefixtures("no_training")
def test_another_setting_for_a_run_is_refused_with_the_difference(mistake, run_dir, trained):
    argv = ["--data.corpus", str(trained[1]), "--run-dir", str(run_dir), *TINY]
    line = mistake(*argv, "--model.n-layer=2", "--train.steps=1")
    assert line.startswith(f"{run_dir} is a run with other settings: ")
    assert "model.n_layer is 1 there and 2 here" in line
    assert "train.steps is 2 there and 1 here (it can grow)" in line
    assert line.endswith("Choose another --run-dir, or its own settings")


# --- the program itself ---------------------------------------------------------------------------


def command(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *argv], capture_output=True, text=True, check=False
    )


def test_a_mistake_is_a_line_and_debug_shows_its_traceback():
    plain, debug = command("--train.steps", "0"), command("--train.steps", "0", "--debug")
    line = "train.steps=0 must be a whole number of at least 1"
    assert (plain.returncode, plain.stdout, plain.stderr) == (2, "", f"error: {line}\n")
    assert debug.returncode != 0
    assert debug.stderr.startswith("Traceback (most recent call last):\n")
    assert debug.stderr.endswith(f"ConfigError: {line}\n")
    assert list(Path().iterdir()) == []
