"""The page as one file: a template, a stylesheet, the scripts and the data, nothing from elsewhere.

Everything from a run enters as JSON in a script element that is not executed, with each `<`
escaped; the scripts put it on the page as text, never as markup. The page's policy lets it execute
the scripts below and nothing else, and lets it reach nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import glob
import hashlib
import html
import importlib.resources
import json
import os
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_jax.errors import ConfigError, UserError
from gpt_jax.experiments.measures import parse_metric
from gpt_jax.report.live import MAX_BYTES, MAX_PARAMETERS, make_live_model
from gpt_jax.report.payload import make_payload
from gpt_jax.storage import open_folder
from gpt_jax.terminal import say, visible

SCRIPTS = ("elements.js", "curves.js", "tokenizer.js", "sampling.js", "model.js", "views.js")
SCRIPTS += ("page.js",)
WORKER = "worker.js"  # the page's text, and executed in a worker alone
MOST_POINTS, LEAST_POINTS = 60_000, 3_000  # of all curves
SCRIPT_BYTES = 50_000  # of the live model beside its parameters


@dataclasses.dataclass(frozen=True)
class Report:
    """A page that was written; a notebook shows it inline.

    Attributes:
      path: of the file.
      text: what is in it.
      notes: what was left out, and why.
    """

    path: Path
    text: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        frame = 'style="width:100%;height:80vh;border:0" sandbox="allow-scripts"'
        return f'<iframe title="report" {frame} srcdoc="{html.escape(self.text)}"></iframe>'


def make_report(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    metric: str = "final",
    max_parameters: int = MAX_PARAMETERS,
    max_bytes: int = MAX_BYTES,
    measure: bool = True,
) -> Report:
    """Writes a page that shows runs, and computes with the model of the first.

    Args:
      runs: folders of runs, sweeps or trials, or patterns such as "runs/base-*"; one or several.
      out: the file; None is report.html in the first folder.
      metric: by which they are compared; see `compare`.
      max_parameters: of a model whose parameters the page has.
      max_bytes: of the page.
      measure: evaluate what half precision does to the loss, which takes two exact evaluations.

    Returns:
      What was written.

    Raises:
      UserError: there are no such runs, or the file can't be written.
    """
    names = [os.fspath(n) for n in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    if not names:
        raise ConfigError("nothing to report: name a run, a sweep or a trial")
    parse_metric(metric)
    path = _out(names[0], out)
    text, notes = _fitting(names, metric, max_parameters, max_bytes, measure)
    try:
        open_folder(path.parent).write(path.name, text)
    except OSError as error:
        raise UserError(f"page {path} can't be written: {error.strerror or error}") from error
    return Report(path, text, tuple(notes))


def _out(first: str | os.PathLike[str], out: str | os.PathLike[str] | None) -> Path:
    """Returns the path of the page, which can be written."""
    if out is None:
        folder = open_folder(first)
        if glob.has_magic(str(first)) and folder.kind() != "folder":
            raise ConfigError(f"--out is missing, and {first} is no folder: name the page's file")
        return folder.path / "report.html"
    parent, name = os.path.split(os.path.expanduser(out))
    if not name.endswith((".html", ".htm")):
        raise ConfigError(f"page {out} must end in .html")
    folder = open_folder(parent or ".")
    if folder.kind() != "folder":
        raise UserError(f"page {out} can't be written: {parent} is not a folder")
    if os.path.isdir(folder.path / name):
        raise UserError(f"page {out} is a folder; give it another name")
    return folder.path / name


def _fitting(
    names: list[str], metric: str, max_parameters: int, max_bytes: int, measure: bool
) -> tuple[str, list[str]]:
    """Returns a page of at most `max_bytes`, and notes on what was left out.

    Curves may take two thirds of it, and the model has what is left.
    """
    points, size = 2 * MOST_POINTS, max_bytes
    while size > max_bytes * 2 // 3 and points > LEAST_POINTS:
        points //= 2
        payload, groups = make_payload(names, metric, points)
        size = len(page(payload))
    if size > max_bytes:
        raise UserError(f"the page would have {size / 1e6:.1f} MB; name fewer runs")
    options = {"max_parameters": max_parameters, "max_bytes": max_bytes - size - SCRIPT_BYTES}
    try:
        live = make_live_model(groups[0].runs[0].run_dir, measure=measure, **options)
    except UserError as error:  # no checkpoint, or a damaged one: what is left is shown
        live = {"reason": visible(error)}
    if reason := live.get("reason"):
        payload["notes"].append(f"without the model: {reason}")
    payload["notes"] += map(visible, live.get("notes", []))
    return page({**payload, "live": live}), payload["notes"]


def page(payload: dict[str, Any]) -> str:
    """Returns the page of some data, as HTML."""
    style, scripts = _source("style.css"), {name: _source(name) for name in SCRIPTS}
    executed = " ".join(map(_hash, scripts.values()))
    elements = [_script("text/plain", WORKER, _source(WORKER))]
    elements += [_script("text/javascript", *script) for script in scripts.items()]
    return string.Template(_source("page.html")).substitute(
        policy=f"default-src 'none'; script-src {executed}; style-src {_hash(style)}; "
        "img-src data:; worker-src blob:; base-uri 'none'; form-action 'none'",
        title=html.escape(payload["title"]),
        style=style,
        data=embedded(payload),
        scripts="\n".join(elements),
    )


def embedded(values: Any) -> str:
    """Returns values as JSON that no HTML parser sees anything in: ASCII, without < > or &."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _script(kind: str, name: str, text: str) -> str:
    return f'<script type="{kind}" data-file="{name}">{text}</script>'


def _source(name: str) -> str:
    """Returns a file of this package, as it will be in the page."""
    text = importlib.resources.files("gpt_jax.report").joinpath(name).read_text("utf-8")
    return text.replace("\r\n", "\n")


def write_page(folder: str | os.PathLike[str], *, quiet: bool = False) -> None:
    """Writes report.html of a sweep or trial that has ended; whatever is wrong is a note."""
    try:
        made = make_report(folder, measure=False)
    except UserError as error:
        say(f"note: no page: {error}")
        return
    if not quiet:
        say(f"page: {made.path}")
