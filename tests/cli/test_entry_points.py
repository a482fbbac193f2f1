"""The three doors of the command line: main.py, `python -m gpt_jax` and the command `gpt_jax`."""

import os
import shutil
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

import gpt_jax

DOORS = ["python main.py", "python -m gpt_jax", "gpt_jax"]
SIGNALLED = """
import os, signal
os.kill(os.getpid(), signal.{signal})
"""
FAILING_BESIDE_A_THREAD = """
import threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
raise ValueError("é")
"""
FAST = """
from gpt_jax import devices  # compiles as the test processes do
devices.compiler_options = lambda backend, *, library_products: {}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with what a wheel would hold by pyproject.toml, and the commands of its scripts."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    site = tmp_path_factory.mktemp("site")
    for package in project["tool"]["setuptools"]["packages"]:
        source = project["tool"]["setuptools"]["package-dir"].get(package)
        source = ROOT / (source or package.replace(".", "/"))
        target = site / package.replace(".", "/")
        target.mkdir(parents=True, exist_ok=True)
        for path in source.glob("*.py"):
            shutil.copy(path, target)
    (site / "bin").mkdir()
    for name, entry in project["project"]["scripts"].items():
        module, function = entry.split(":")
        (site / "bin" / name).write_text(
            f"import sys\nfrom {module} import {function}\n"
            f"if __name__ == '__main__':\n    sys.exit({function}())\n"
        )
    return site


@pytest.fixture
def start(site, tmp_path):
    """Runs a command through one of the doors, in an empty folder; main.py is the checkout's."""

    def start(door: str, *argv: str, **environment: str) -> subprocess.CompletedProcess:
        words = {
            "python main.py": [str(ROOT / "main.py")],
            "python -m gpt_jax": ["-m", "gpt_jax"],
            "gpt_jax": [str(site / "bin" / "gpt_jax")],
        }
        env = {**os.environ, "PYTHONPATH": str(site), **environment}
        return subprocess.run(
            [sys.executable, *words[door], *argv], cwd=tmp_path, env=env, timeout=300,
            capture_output=True, text=True, encoding="utf-8", check=False,
        )  # fmt: skip

    return start


@pytest.mark.parametrize("door", DOORS)
def test_every_door_answers_and_names_itself(start, door):
    done = start(door, "--version")
    assert (done.returncode, done.stdout) == (0, f"gpt_jax {gpt_jax.__version__}\n")
    done = start(door, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {door} [train] ")
    assert "  nano " in done.stdout
    done = start(door, "sample", "--x")
    assert done.returncode == 2
    assert done.stderr == f"error: unknown setting '--x' (see {door} sample --help)\n"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("signal", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_before_any_work_is_one_line(start, tmp_path, door, signal, status):
    (tmp_path / "mine.py").write_text(SIGNALLED.format(signal=signal))
    done = start(door, "--config", "mine.py")
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "interrupted\n")


@pytest.mark.parametrize("door", DOORS)
def test_a_failure_waits_for_no_thread_and_shows_what_the_terminal_can(start, tmp_path, door):
    (tmp_path / "mine.py").write_text(FAILING_BESIDE_A_THREAD, encoding="utf-8")
    done = start(door, "--config", "mine.py", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert done.stderr == "error: config file mine.py fails: ValueError: ?\n"


@pytest.mark.parametrize("door", DOORS[1:])
def test_prepare_needs_a_checkout(start, tmp_path, door):
    (tmp_path / "data").mkdir()  # the user's, which is another package of that name
    (tmp_path / "data" / "__init__.py").touch()
    (tmp_path / "data" / "cli.py").write_text("raise SystemExit('the wrong one')")
    done = start(door, "prepare", "--help")
    assert done.returncode == 2
    assert done.stderr == (
        "error: prepare works in a checkout of the project only, because the installed package "
        "has no folder data/; run there: python main.py prepare\n"
    )


def test_prepare_is_the_checkouts_whatever_lies_in_the_working_folder(start, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").touch()
    done = start("python -m gpt_jax", "prepare", "--help", PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m gpt_jax prepare ")


@pytest.mark.slow
def test_an_installed_package_trains_its_own_nano(start, site, tmp_path):
    (tmp_path / "book.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 45)
    tiny = "--model.n-layer=1 --model.n-embd=16 --model.n-head=2 --model.block-size=8 "
    tiny += "--train.batch-size=4 --train.steps=2 --train.eval-batches=1 --data.corpus=book.txt "
    tiny += "--model.dropout=0 --sample.max-new-tokens=4"
    (tmp_path / "sitecustomize.py").write_text(FAST)
    environment = {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": f"{tmp_path}{os.pathsep}{site}"}
    done = start("gpt_jax", "--config", "nano", *tiny.split(), **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "runs" / "nano" / "summary.json").is_file()
