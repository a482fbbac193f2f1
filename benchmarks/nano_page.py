"""Writes docs/nano.html, the page that shows a run of nano, and docs/nano-page.png.

    python benchmarks/nano_page.py [FOLDER]   # of the run FOLDER/runs/nano
    python benchmarks/nano_page.py --scripts  # the data that the page has, in the scripts of today

Where the run is not finished, it is trained first; FOLDER is a temporary one by default. The page
has the seconds of this training: let the machine be quiet. The picture needs playwright and
Chromium; without them it stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PAGE, PICTURE = ROOT / "docs" / "nano.html", ROOT / "docs" / "nano-page.png"
MAX_BYTES = 3_000_000


def make(folder: Path) -> str:
    """Returns the page of a folder's runs/nano."""
    import gpt_jax

    if not (folder / "runs/nano/summary.json").exists():
        train = [sys.executable, ROOT / "main.py", "--config", "nano", "--run-dir", "runs/nano"]
        subprocess.run(train, cwd=folder, check=True)
    with contextlib.chdir(folder):  # the page names runs/nano, and no folder of this machine
        made = gpt_jax.make_report("runs/nano", "nano.html", max_bytes=MAX_BYTES)
    for note in made.notes:
        print(f"note: {note}")
    return made.text


def data_of(text: str) -> dict[str, Any]:
    """Returns what a page shows, as it has it."""
    return json.loads(re.findall(r'id="report-data">(.*?)</script>', text, re.DOTALL)[0])


def problem(data: dict[str, Any]) -> str:
    """Returns why the model of a page is not quite nano, or ""."""
    from gpt_jax.report.live import MAX_ROUNDING

    rounding = data["live"].get("rounding")
    if not rounding:
        return data["live"].get("reason", "it was not measured what half precision changes")
    if "why" in rounding:
        return f"what half precision changes is not known: {rounding['why']}"
    by = abs(rounding["rounded"] - rounding["exact"])
    said = f"half precision changes nano's loss by {by:.4f}, not at most {MAX_ROUNDING}"
    return "" if by <= MAX_ROUNDING else said


def main(folder: Path | None) -> None:
    from gpt_jax.report.page import page

    text = make(folder) if folder else page(data_of(PAGE.read_text("utf-8")))
    if why := problem(data_of(text)):
        sys.exit(f"{PAGE} stays as it was: {why}")
    PAGE.write_text(text, "utf-8")
    print(f"{PAGE}: {len(text):,} bytes")
    take_picture()


def take_picture() -> None:
    """Takes a picture of the model as it continues its prompt."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print(f"{PICTURE} is as it was: there is no chromium, or no playwright")
        return
    with sync_playwright() as found:
        browser = found.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1040}, device_scale_factor=1)
        page.goto(PAGE.as_uri())
        page.get_by_label("tokens", exact=True).last.fill("100")
        page.get_by_role("button", name="Continue").click()
        page.locator("#live").evaluate("each => each.scrollIntoView()")
        page.wait_for_timeout(8000)  # until the text is there, and judged
        page.screenshot(path=PICTURE)
        browser.close()
    print(PICTURE)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        named = (*sys.argv[1:], temporary)[0]
        main(None if named == "--scripts" else Path(os.path.abspath(named)))
