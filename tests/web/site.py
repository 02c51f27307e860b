"""The chat page as a visitor uses it, and the record as an operator sees it. Words for the tests, no claims."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

from tests.server.live import LiveServer
from tests.web.script import ScriptedEngine
from tests.web.wire import Wire

QUESTION = "How do I make good coffee?"


class Site:
    """One visitor at one page, with the wire to the server in between."""

    def __init__(self, browser: Browser, server: LiveServer, engine: ScriptedEngine, wire: Wire) -> None:
        self.browser = browser
        self.server = server
        self.engine = engine
        self.wire = wire
        self.breakages: list[str] = []
        self.context: Any = None

    def open(
        self, *, pairs: bool = False, width: int = 1200, height: int = 800, scheme: Any = "light"
    ) -> Page:
        """The empty page; `pairs` says whether every turn or none shows two replies."""
        self.pairs(pairs)
        self.context = self.browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            permissions=["clipboard-read", "clipboard-write"],
            reduced_motion="reduce",
        )
        self.context.set_default_timeout(10_000)
        page: Page = self.context.new_page()
        page.on("pageerror", lambda error: self.breakages.append(str(error)))
        page.on("console", self._hear)
        page.goto(self.wire.url + "/")
        page.get_by_text("Answering since").wait_for()
        self.page = page
        return page

    def close(self) -> None:
        if self.context is not None:
            self.context.close()

    def _hear(self, message: ConsoleMessage) -> None:
        # Chromium itself reports failed requests here, and some tests are about those.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.breakages.append(message.text)

    # --- the visitor -----------------------------------------------------------------------------------------

    def ask(self, text: str = QUESTION) -> None:
        self.box.fill(text)
        self.page.keyboard.press("Enter")

    def ask_and_wait(self, text: str = QUESTION) -> None:
        answered = self.tools.count()
        self.ask(text)
        self.tools.nth(answered).wait_for()

    @property
    def box(self) -> Locator:
        return self.page.get_by_role("textbox", name="Message")

    @property
    def tools(self) -> Locator:
        """The row of buttons below each finished reply."""
        return self.page.get_by_role("group", name="About this reply")

    @property
    def choice(self) -> Locator:
        return self.page.get_by_role("group", name="Which reply is better?")

    def said(self, text: str, *, exact: bool = False) -> Locator:
        """What stands in the conversation, apart from what is read out to screen readers."""
        return self.page.locator("#transcript").get_by_text(text, exact=exact)

    def side(self, which: str) -> str:
        """What stands on one side of the pair: `First` or `Second`."""
        return self.page.get_by_role("region", name=f"{which} reply").locator(".words").inner_text()

    def buttons(self) -> list[str]:
        """Every button that could be pressed now, inside the conversation."""
        found = self.page.locator("#transcript button:visible:enabled")
        return [button.inner_text() or str(button.get_attribute("aria-label")) for button in found.all()]

    def focused(self) -> str:
        """The accessible name of what has the keyboard, or its tag."""
        return str(
            self.page.evaluate(
                "(document.activeElement.getAttribute('aria-label') || document.activeElement.id"
                " || document.activeElement.tagName)"
            )
        )

    # --- the operator ----------------------------------------------------------------------------------------

    def pairs(self, always: bool) -> None:
        with self.server.client() as client:
            body = {"pairing": {"share": 1.0 if always else 0.0}}
            client.put("/v1/segments/default", json=body).raise_for_status()

    def votes(self, kind: str) -> list[dict[str, Any]]:
        """Feedback of a kind in the record, newest first."""
        with self.server.client() as client:
            answer = client.get("/v1/feedback", params={"kind": kind, "limit": 100}).raise_for_status()
            rows = answer.json()["data"]
        return sorted(rows, key=lambda row: row["seq"], reverse=True)

    def turn(self, turn_id: str) -> dict[str, Any]:
        with self.server.client() as client:
            return dict(client.get(f"/v1/turns/{turn_id}").raise_for_status().json())
