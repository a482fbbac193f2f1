"""The edges of a process: standard streams that are full or closed, what jax refuses, memory."""

import errno
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from gpt_jax import devices
from gpt_jax.cli import main
from gpt_jax.errors import UserError

PLAN = ["plan", "--model.vocab-size=5"]


def shell(line, **environment):
    """Runs main.py by a line of bash that names it M; returns (status, output, errors)."""
    env = {**os.environ, "M": str(ROOT / "main.py"), "P": sys.executable, **environment}
    done = subprocess.run(
        ["bash", "-c", line.replace("M ", '"$P" "$M" ')], env=env, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("where", ["/dev/full", "&-"])
def test_output_that_cannot_be_written_is_one_line_and_status_1(where, unbuffered):
    status, _, errors = shell(f"M --help >{where}", PYTHONUNBUFFERED=unbuffered)
    assert status == 1
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert "cannot write the output: " in errors[0]


@pytest.mark.slow
def test_errors_that_cannot_be_written_leave_the_status():
    for where in ("/dev/full", "&-"):
        status, out, errors = shell(f"M --train.steps 0 2>{where}")
        assert (status, out, errors) == (2, "", [])
        status, out, errors = shell(f"M --version 2>{where}")
        assert (status, errors) == (0, [])
        assert out.startswith("gpt_jax ")
    status, out, errors = shell("M --train.steps 0 <&- >&- 2>&-")
    assert (status, out, errors) == (2, "", [])


@pytest.mark.slow
def test_a_closed_standard_input_is_one_line(tmp_path):
    status, _, errors = shell("M sample --prompt - --run-dir x <&-", PYTHONUNBUFFERED="1")
    assert status == 2
    assert len(errors) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_PLATFORMS", "foo"),
        ("JAX_PLATFORMS", "cuda"),
        ("JAX_NUM_CPU_DEVICES", "x"),
        ("JAX_ENABLE_X64", "perhaps"),
    ],
)
def test_what_jax_refuses_is_one_line_that_names_it(tmp_path, book, name, value):
    folder = tmp_path / "run"
    line = f"M --data.corpus {book} --run-dir {folder}"
    env = {"JAX_PLATFORMS": "cpu", name: value}
    if "DEVICES" not in name:
        env["JAX_NUM_CPU_DEVICES"] = "1"
    status, _, errors = shell(line, **env)
    assert status == 2
    assert len(errors) == 1
    assert errors[0].startswith(f"error: jax refuses {name}={value}")
    assert not folder.exists()


def test_only_the_words_of_jax_are_an_environment_problem(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    text = "Unable to initialize backend 'cuda': no such device\nmore"
    found = devices.environment_problem(RuntimeError(text))
    assert found.startswith("jax refuses JAX_PLATFORMS=cuda")
    assert found.endswith("no such device; set JAX_PLATFORMS=cpu, or unset it")
    assert devices.environment_problem(RuntimeError("a bug")) == ""
    assert devices.environment_problem(ValueError("invalid literal: 'cuda'")) == ""


def test_a_limit_of_the_address_space_is_one_line(monkeypatch):
    resource = pytest.importorskip("resource")
    for limit, is_enough in ((2**30, False), (2**45, True), (resource.RLIM_INFINITY, True)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        if is_enough:
            devices.check_address_space()
        else:
            with pytest.raises(UserError, match=r"limited to 1\.0 GiB \(ulimit -v\)"):
                devices.check_address_space()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left"), "cannot write the output: No space left"),
        (MemoryError(), "the memory or the address space (ulimit -v) is too small"),
        (ImportError("x.so: Cannot allocate memory"), "the memory or the address space"),
    ],
)
def test_errors_of_the_machine_are_one_line(monkeypatch, capsys, error, line):
    def fail(verb):
        raise error

    monkeypatch.setattr(main, "_verb_module", fail)
    assert main.main(["eval"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {line}")
    with pytest.raises(type(error)):
        main.main(["eval", "--debug"])


def test_another_error_is_a_bug_and_keeps_its_traceback(monkeypatch):
    def fail(verb):
        raise OSError(errno.ENOENT, "No such file", "a file")

    monkeypatch.setattr(main, "_verb_module", fail)
    with pytest.raises(OSError, match="a file"):
        main.main(["eval"])
