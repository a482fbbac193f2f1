"""The notebook runs from top to bottom on a CPU, with fewer steps and a smaller model here."""

import ast
import os
import re

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / "notebooks" / "colab.ipynb"
SHOWN = {"gpt_jax.make_report", "jax.devices"}  # calls whose values a reader wants to see
NOTHING = {"print", "plt.show", "request_cpu_devices"}  # calls that return None
NOISE = re.compile(r"^(CompletedProcess|\[?<|\{|Text\(|None|Run\()")


def test_no_cell_ends_in_a_value_that_says_nothing():
    """The value of a cell's last expression is displayed, such as a CompletedProcess."""
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            last = ast.parse(cell.source).body[-1]
            if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call):
                assert ast.unparse(last.value.func) in SHOWN | NOTHING, cell.source


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    train = next(cell for cell in notebook.cells if "STEPS = 500" in cell.source)
    run_dir = tmp_path / "run"
    train.source = train.source.replace("STEPS = 500", "STEPS = 20").replace(
        '"runs/notebook"', repr(str(run_dir))
    )
    small = '"train.steps": STEPS, "model.n_layer": 1, "model.n_embd": 32, "model.dropout": 0.0'
    small += ', "train.batch_size": 8, "train.eval_batches": 2'
    assert '"train.steps": STEPS' in train.source
    train.source = train.source.replace('"train.steps": STEPS', small)
    request = next(cell for cell in notebook.cells if "request_cpu_devices(32)" in cell.source)
    # Compiled as the test processes compile, before other modules take the options.
    request.source += "\nimport gpt_jax.devices as devices\n"
    request.source += "devices.compiler_options = lambda backend, *, library_products: {}"
    # Without a network, or the book, nano trains on its fallback; nothing here is downloaded.
    monkeypatch.setenv("GPT_JAX_OZ_URL", "http://127.0.0.1:9/pg55.txt")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # what requirements.txt names is installed already
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}})
    client.execute(env=dict(os.environ))
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error"
            if output.output_type == "execute_result":
                assert not NOISE.match(output.data["text/plain"]), cell.source
    (shown,) = train.outputs  # one output, and at its end no bar
    lines = shown.data["text/plain"].splitlines()
    assert [line.split()[0] for line in lines if re.match(r"\s+\d+ ", line)] == ["0", "20"]
    assert not re.search(r"\x1b|step 20/20|compiling", shown.data["text/plain"])
    outputs = "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    assert "whole validation split" in outputs
    assert "The Great Wizard said " in outputs
    assert "image/png" in outputs
    assert (run_dir / "summary.json").is_file()
