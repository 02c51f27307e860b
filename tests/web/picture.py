"""Takes the README's picture: the chat page with the demo model and a pair to choose from.

`.venv/bin/python -m tests.web.picture docs/images/chat.png`, on a machine that has a font with emoji, because
replies may hold one (Debian: fonts-noto-color-emoji).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.running import RunningHone
from tests.web.conftest import QUIET

WIDTH, HEIGHT = 1200, 800
PATIENCE_MS = 90_000
"""The learner starts beside the server, at low priority."""


def share_of_pairs(hone: RunningHone, share: float) -> None:
    with hone.client() as client:
        client.put("/v1/segments/default", json={"pairing": {"share": share}}).raise_for_status()


def take(target: Path) -> None:
    """A short talk, then a pair, photographed as soon as it can be chosen from."""
    chromium = shutil.which("chromium")
    with (
        tempfile.TemporaryDirectory() as data,
        RunningHone(Path(data), learner=True) as hone,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(hone.url)
        share_of_pairs(hone, 0.0)
        page.get_by_role("textbox", name="Message").fill("Hello, I am Mara. How do I keep my plants alive?")
        page.keyboard.press("Enter")
        page.get_by_role("group", name="About this reply").wait_for()
        share_of_pairs(hone, 1.0)
        page.get_by_role("textbox", name="Message").fill("How do I make good coffee?")
        page.keyboard.press("Enter")
        page.get_by_role("group", name="Which reply is better?").wait_for()
        page.get_by_text("Learning:").wait_for(timeout=PATIENCE_MS)
        target.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=target)
        browser.close()


if __name__ == "__main__":
    take(Path(sys.argv[1]))
