"""The verbs of the command line: each has a module of its name here, with a function `command`.

`command(argv)` takes the arguments after the verb and returns the exit status. It parses the whole
command line before it imports jax, so that --help and usage errors are answered at once; `main.py`
reports errors. The module of `prepare` is `data/cli.py`, which is not part of the package.
"""

VERBS = {
    "train": "train a model or resume a run (the default)",
    "sweep": "train a run for each point of a grid and each seed, and compare them",
    "sample": "generate text with a trained model",
    "eval": "evaluate a trained model on a whole split, each token once",
    "compare": "compare runs: is one side better, by how much, how sure",
    "trial": "train pairs of runs until a change is shown to help or to harm",
    "report": "write one HTML page that shows runs, and computes with their model",
    "prepare": "tokenize texts of any size into token shards on disk",
    "export": "write a run as a GPT-2 folder, which transformers can load",
    "replay": "recompute one training step: its batch, loss and gradient",
    "verify": "check the project's guarantees on this machine",
    "plan": "report the memory and time a training step needs, on this machine or a TPU slice",
}
