"""gpt_jax: train and sample GPTs with JAX.

    import gpt_jax

    run = gpt_jax.train(gpt_jax.load_config("nano"))   # or gpt_jax.load_run("runs/nano")
    print(gpt_jax.generate(run, "The Great Wizard said "))

Importing this package imports neither jax nor anything else that takes time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gpt_jax.config import Config, load_config, override
from gpt_jax.errors import Interrupted, TrainingError, UserError
from gpt_jax.version import __version__

if TYPE_CHECKING:
    from gpt_jax import hf
    from gpt_jax.experiments.comparison import compare
    from gpt_jax.experiments.sweeps import sweep
    from gpt_jax.experiments.trials import trial
    from gpt_jax.inference.activations import Activations, activations
    from gpt_jax.inference.evaluation import evaluate
    from gpt_jax.inference.generation import generate, stream
    from gpt_jax.input_pipeline.sequences import write_sequences
    from gpt_jax.model import GPT
    from gpt_jax.report.page import Report, make_report
    from gpt_jax.run.load import Run, load_run
    from gpt_jax.training.branches import branch_from
    from gpt_jax.training.init_from import start_from
    from gpt_jax.training.save import save_run
    from gpt_jax.training.trainer import train

__all__ = [
    "GPT",
    "Activations",
    "Config",
    "Interrupted",
    "Report",
    "Run",
    "TrainingError",
    "UserError",
    "__version__",
    "activations",
    "branch_from",
    "compare",
    "evaluate",
    "generate",
    "hf",
    "load_config",
    "load_run",
    "make_report",
    "override",
    "save_run",
    "start_from",
    "stream",
    "sweep",
    "train",
    "trial",
    "write_sequences",
]

_LAZY = {
    "GPT": "model",
    "train": "training.trainer",
    "Run": "run.load",
    "Activations": "inference.activations",
    "activations": "inference.activations",
    "branch_from": "training.branches",
    "compare": "experiments.comparison",
    "evaluate": "inference.evaluation",
    "generate": "inference.generation",
    "hf": "hf",
    "load_run": "run.load",
    "Report": "report.page",
    "make_report": "report.page",
    "save_run": "training.save",
    "start_from": "training.init_from",
    "stream": "inference.generation",
    "trial": "experiments.trials",
    "sweep": "experiments.sweeps",
    "write_sequences": "input_pipeline.sequences",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gpt_jax' has no attribute {name!r}")
    module = importlib.import_module(f"gpt_jax.{_LAZY[name]}")
    return module if name == _LAZY[name] else getattr(module, name)
