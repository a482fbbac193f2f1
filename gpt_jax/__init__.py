"""gpt_jax: train and sample GPTs with JAX.

    import gpt_jax

    run = gpt_jax.train(gpt_jax.load_config("nano"))   # or gpt_jax.load_run("runs/nano")
    print(gpt_jax.generate(run, "The Great Wizard said "))

Importing this package imports neither jax nor anything else that takes time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gpt_jax.config import Config, override
from gpt_jax.config_files import load_config
from gpt_jax.errors import Interrupted, TrainingError, UserError

if TYPE_CHECKING:
    from gpt_jax import hf
    from gpt_jax.loop import train
    from gpt_jax.model import GPT
    from gpt_jax.run import Run, evaluate, load_run
    from gpt_jax.start import start_from
    from gpt_jax.text import generate, stream

__version__ = "0.1.0"
__all__ = [
    "GPT",
    "Config",
    "Interrupted",
    "Run",
    "TrainingError",
    "UserError",
    "evaluate",
    "generate",
    "hf",
    "load_config",
    "load_run",
    "override",
    "start_from",
    "stream",
    "train",
]

_LAZY = {
    "GPT": "model",
    "train": "loop",
    "Run": "run",
    "evaluate": "run",
    "generate": "text",
    "hf": "hf",
    "load_run": "run",
    "start_from": "start",
    "stream": "text",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gpt_jax' has no attribute {name!r}")
    module = importlib.import_module(f"gpt_jax.{_LAZY[name]}")
    return module if name == _LAZY[name] else getattr(module, name)
