"""The page of a sweep or trial, written once it has ended; whatever is wrong with it is a note."""

from __future__ import annotations

import os

from gpt_jax.errors import UserError
from gpt_jax.report.page import make_report
from gpt_jax.terminal import say


def write_page(folder: str | os.PathLike[str], *, quiet: bool = False) -> None:
    """Writes report.html into the folder of a sweep or trial."""
    try:
        made = make_report(folder, measure=False)
    except UserError as error:
        say(f"note: no page: {error}")
        return
    if not quiet:
        say(f"page: {made.path}")
