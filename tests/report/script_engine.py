"""The page's scripts in a JavaScript engine without a page."""

import json
from functools import cache

from conftest import ROOT
from py_mini_racer import MiniRacer

REPORT = ROOT / "gpt_jax" / "report"
SCRIPTS = ("model.js", "tokenizer.js", "sampling.js")


class Scripts:
    """An engine with the scripts that need no page; values go in and come out as JSON."""

    def __init__(self):
        self._engine = MiniRacer()
        for name in SCRIPTS:
            self._engine.eval((REPORT / name).read_text("utf-8"))

    def __call__(self, body: str, **values):
        """Returns what the body of a function of these values returns."""
        names = ", ".join(values)
        texts = ", ".join(json.dumps(value) for value in values.values())
        replace = "(k, x) => ArrayBuffer.isView(x) ? Array.from(x) : x"
        code = f"JSON.stringify((({names}) => {{{body}}})({texts}), {replace})"
        return json.loads(self._engine.eval(code))


@cache
def scripts() -> Scripts:
    return Scripts()
