"""The verbs of the command line: each has a module of its name here, with a function `command`.

That of `prepare` is `data/cli.py`, for the package knows nothing of the folder data.
`command(argv)` takes the words after the verb and returns the exit status. It reads the whole
command line before it imports jax, so that --help and mistakes are answered at once; errors are for
`main.py` to report.
"""

VERBS = {
    "train": "train a model, or go on with a run (the default)",
    "sample": "write text with a trained model",
    "eval": "evaluate a trained model on a whole split, exactly",
    "prepare": "turn texts of any size into token shards on disk",
    "export": "write a run as a GPT-2 folder, as transformers reads it",
    "replay": "compute one training step of a run again: what it saw, and its gradient",
    "verify": "try on this machine, in small, what the project promises",
    "plan": "compile a run's step, here or for a TPU slice, and say what it takes; trains nothing",
}
