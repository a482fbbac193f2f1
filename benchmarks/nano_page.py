"""Trains nano and writes docs/nano.html, the page that shows it, and docs/nano-page.png.

    python benchmarks/nano_page.py [FOLDER]

FOLDER is where nano is trained as runs/nano, or was; by default a temporary one. The picture needs
playwright and Chromium; without them it stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PAGE, PICTURE = ROOT / "docs" / "nano.html", ROOT / "docs" / "nano-page.png"
MAX_BYTES = 3_000_000


def main(folder: Path) -> None:
    import gpt_jax

    train = [sys.executable, str(ROOT / "main.py"), "--config", "nano", "--run-dir", "runs/nano"]
    subprocess.run(train, cwd=folder, check=True)
    with contextlib.chdir(
        folder
    ):  # so that the page names runs/nano, and no folder of this machine
        made = gpt_jax.make_report("runs/nano", "nano.html", max_bytes=MAX_BYTES)
    PAGE.write_text(made.text, "utf-8")
    print(f"{PAGE}: {len(made.text):,} bytes")
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
        main(Path(os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else temporary)))
