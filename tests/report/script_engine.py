"""The page's scripts in a JavaScript engine without a page.

The engine lacks three things that every browser has; BROWSER stands for them here, and the tests in
a real browser have its own.
"""

import json
from functools import cache

from conftest import ROOT
from py_mini_racer import MiniRacer

REPORT = ROOT / "gpt_jax" / "report"
SCRIPTS = ("model.js", "tokenizer.js", "sampling.js", "worker.js", "views.js")
BROWSER = r"""
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
function atob(text) {
  const bits = [...text.replace(/=+$/, "")].map((letter) =>
    LETTERS.indexOf(letter).toString(2).padStart(6, "0")).join("");
  return (bits.match(/[01]{8}/g) ?? []).map((byte) =>
    String.fromCharCode(parseInt(byte, 2))).join("");
}
class TextEncoder {
  encode(text) {
    const bytes = unescape(encodeURIComponent(text.toWellFormed()));
    return Uint8Array.from(bytes, (byte) => byte.charCodeAt(0));
  }
}
// UTF-8 (Unicode 3.9, table 3-7): the first two bytes of a character, and how many follow.
const STARTS = [["\xe0[\xa0-\xbf]", 1], ["[\xe1-\xec\xee\xef][\x80-\xbf]", 1],
  ["\xed[\x80-\x9f]", 1], ["\xf0[\x90-\xbf]", 2], ["[\xf1-\xf3][\x80-\xbf]", 2],
  ["\xf4[\x80-\x8f]", 2]];
const alternatives = (least) =>
  STARTS.map(([start, n]) => `${start}[\x80-\xbf]{${least(n)}}`).join("|");
const UTF8 = new RegExp(`([\0-\x7f]|[\xc2-\xdf][\x80-\xbf]|${alternatives((n) => n)})|` +
  `${alternatives((n) => `0,${n - 1}`)}|[^]`, "g");
class TextDecoder {
  constructor(label, { ignoreBOM }) {
    if (!ignoreBOM) throw new Error("U+FEFF would be dropped");
  }
  decode(bytes) {
    const text = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
    return decodeURIComponent(escape(
      text.replace(UTF8, (match, whole) => (whole === undefined ? "\xef\xbf\xbd" : match))));
  }
}
"""


class Scripts:
    """An engine with the scripts that need no page; values go in and come out as JSON."""

    def __init__(self):
        self._engine = MiniRacer()
        self._engine.eval(BROWSER)
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
