"""Everybody can use the page: axe finds nothing serious in any state, light or dark, wide or on a phone."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from server.errors import Unavailable
from tests.web.site import Site

pytestmark = pytest.mark.full

REPLY = "# Coffee\n\nUse **fresh** beans:\n\n- weigh `15 g`\n- pour *slowly*\n\n```\ngrind --fine\n```"


def serious(page: Page, axe: str) -> list[str]:
    """What axe-core holds against the page as it stands, serious or worse."""
    page.evaluate(axe)
    found: list[dict[str, Any]] = page.evaluate("axe.run().then(report => report.violations)")
    return [
        f"{problem['id']}: {node['html']}"
        for problem in found
        if problem["impact"] in {"serious", "critical"}
        for node in problem["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 375])
def test_axe_finds_nothing_serious_in_any_state(site: Site, axe: str, scheme: str, width: int) -> None:
    site.engine.texts = (REPLY, "Another way to see it.")
    page = site.open(width=width, scheme=scheme)
    assert serious(page, axe) == [], "empty page"

    site.ask_and_wait()
    page.get_by_role("button", name="Good reply").click()
    expect(page.get_by_text("Thank you")).to_be_visible()
    assert serious(page, axe) == [], "a rated reply"

    page.get_by_role("button", name="Edit reply").click()
    assert serious(page, axe) == [], "editing"
    page.keyboard.press("Escape")

    site.pairs(True)
    site.engine.close_gates()
    site.ask("Two, please")
    expect(page.locator(".card")).to_have_count(2)
    assert serious(page, axe) == [], "a pair being written"
    site.engine.open_gates()
    site.choice.wait_for()
    assert serious(page, axe) == [], "a choice"
    page.get_by_role("button", name="First is better").click()
    expect(site.choice).to_have_count(0)

    site.engine.breakdown = Unavailable("The engine is away.", code="engine_unavailable")
    site.ask("Trouble, please")
    page.get_by_role("alert").wait_for()
    assert serious(page, axe) == [], "trouble"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_axe_would_find_something_serious(site: Site, axe: str) -> None:
    """The check itself works: text that can hardly be read is found."""
    page = site.open()
    page.evaluate("document.querySelector('#welcome p').style.color = '#eee'")
    assert any(problem.startswith("color-contrast") for problem in serious(page, axe))


def test_the_page_runs_nothing_but_its_own_files(site: Site) -> None:
    """A planted inline script and a planted handler are refused by the page's policy."""
    page = site.open()
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'document.title = `broken`';"
        " document.body.append(s); document.body.setAttribute('onclick', 'document.title = `broken`'); }"
    )
    page.locator("body").click(position={"x": 5, "y": 5})
    assert page.title() == "Hone"
    assert any("Content Security Policy" in breakage for breakage in site.breakages)
    site.breakages.clear()
