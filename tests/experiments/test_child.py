"""A script's process ends with the one that started it; how it ends itself is told as it is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from gpt_jax.experiments import child

fcntl = pytest.importorskip("fcntl")

# It holds a lock as long as it lives, and is busy or asleep.
SCRIPT = """
import fcntl, os, time
held = open("lock", "w")
fcntl.flock(held, fcntl.LOCK_EX)
open("began", "w").close()
while True:
    os.environ["HOW"] == "busy" or time.sleep(60)
"""
PARENTS = {
    "a script": "with child.start('main.py') as process: process.wait()",
    "a side of a trial": "trees.train_in_tree(trees.Tree('.', None, False, ''), Config(), "
    "Path('base.py'))",
}
IMPORTS = """
from pathlib import Path
from gpt_jax.config import Config
from gpt_jax.experiments import child, trees
"""


def wait_for(happened):
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_free(lock):
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


@pytest.mark.parametrize("how", ["busy", "asleep"])
@pytest.mark.parametrize("parent", PARENTS)
def test_it_ends_when_the_process_that_started_it_is_killed(tmp_path, parent, how):
    (tmp_path / "main.py").write_text(SCRIPT, "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOW": how}
    command = [sys.executable, "-c", IMPORTS + PARENTS[parent]]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    wait_for((tmp_path / "began").exists)
    assert not is_free(tmp_path / "lock")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    wait_for(lambda: is_free(tmp_path / "lock"))


def test_it_runs_as_python_would_run_it(tmp_path):
    """Arguments, modules beside it, an empty standard input, its own end; nothing of ours."""
    (tmp_path / "beside.py").write_text("VALUE = 5", "utf-8")
    script = tmp_path / "script.py"
    lines = [
        "import sys, beside",
        "print(__name__, __file__, sys.argv, sys.stdin.read(), sys.path[0])",
    ]
    lines += ["print('gpt_jax' in sys.modules)", "sys.exit(beside.VALUE)"]
    script.write_text("\n".join(lines), "utf-8")
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    with child.start(
        script, "a", "b", stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        shown, _ = process.communicate()
    expected = f"__main__ {script} {[str(script), 'a', 'b']}  {tmp_path.resolve()}\nFalse\n"
    assert (shown, process.returncode) == (expected, 5)


def test_what_is_left_of_it_ends_on_leaving(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import time\ntime.sleep(60)", "utf-8")
    with pytest.raises(KeyboardInterrupt), child.start(script) as process:
        raise KeyboardInterrupt
    assert process.returncode == 1
    with pytest.raises(FileNotFoundError), child.start(script, cwd=Path("missing")):
        pass
