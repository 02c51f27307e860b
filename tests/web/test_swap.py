"""When another version begins to serve, the conversation says so once, in one calm sentence of facts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.server.publishing import publish
from tests.web.site import Site
from tests.web.test_access import serious

pytestmark = pytest.mark.full

PATIENCE_MS = 15_000
"""Longer than the beat in which the page looks at the server."""


@pytest.fixture
def version(site: Site) -> Iterator[int]:
    """A version that waits to be promoted; the bare base serves before and after."""
    server = site.server
    yield publish(server.store, server.settings, base_hash="scripted", picks=300, thumbs=120, people=24)
    with server.client() as client:
        if client.get("/v1/segments").json()["data"][0]["champion"] != 0:
            move(site, "rollback", to=0)


def move(site: Site, verb: str, **body: Any) -> None:
    with site.server.client() as client:
        moved = client.post(f"/v1/segments/default/{verb}", json=body).raise_for_status().json()
    assert moved["serving"], moved


def learned(version: int) -> str:
    return f"Version {version} serves now: learned from 300 picks and 120 thumbs by 24 people."


def lines(site: Site) -> list[str]:
    """The conversation from top to bottom: questions, and what is said of swaps."""
    found = site.page.locator("#transcript > .swap, #transcript .question .words")
    return [line.inner_text() for line in found.all()]


def look(site: Site) -> None:
    """Wait until the page has looked at the server once more."""
    with site.page.expect_response("**/v1/models", timeout=PATIENCE_MS):
        pass
    site.page.wait_for_timeout(100)


def test_a_swap_and_its_rollback_are_said_once_where_they_happened(site: Site, version: int) -> None:
    page = site.open()
    site.ask_and_wait("One?")
    assert lines(site) == ["One?"]
    move(site, "promote", version=version)
    expect(site.said(learned(version), exact=True)).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#status")).to_contain_text("A new version is answering")
    site.ask_and_wait("Two?")
    look(site)
    assert lines(site) == ["One?", learned(version), "Two?"]

    move(site, "rollback")
    expect(site.said("Version 0 serves again.", exact=True)).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#status")).to_contain_text("An earlier version is answering again")
    page.reload()
    expect(site.tools).to_have_count(2)
    look(site)
    assert lines(site) == ["One?", learned(version), "Two?", "Version 0 serves again."]
    assert all("serves" not in prompt for prompt in site.engine.asked)

    page.get_by_role("button", name="New chat").click()
    site.ask_and_wait("Three?")
    assert lines(site) == ["Three?"]


def test_a_swap_while_the_page_was_away_is_said_on_return(site: Site, version: int) -> None:
    page = site.open()
    site.ask_and_wait("One?")
    page.goto("about:blank")
    move(site, "promote", version=version)
    page.goto(site.wire.url + "/")
    expect(site.said(learned(version), exact=True)).to_be_visible(timeout=PATIENCE_MS)


def test_with_nothing_said_yet_only_a_swap_since_the_page_was_opened_is_told(
    site: Site, version: int, axe: str
) -> None:
    page = site.open()
    look(site)
    page.goto("about:blank")
    move(site, "promote", version=version)
    page.goto(site.wire.url + "/")
    page.get_by_text("Answering since").wait_for()
    look(site)
    assert lines(site) == []
    move(site, "rollback")
    expect(site.said("Version 0 serves again.", exact=True)).to_be_visible(timeout=PATIENCE_MS)
    move(site, "rollforward")
    again = f"Version {version} serves again: learned from 300 picks and 120 thumbs by 24 people."
    expect(site.said(again, exact=True)).to_be_visible(timeout=PATIENCE_MS)
    assert lines(site) == [again]
    assert serious(page, axe) == []


def test_it_waits_until_a_pair_is_chosen_and_then_stands_before_what_comes_next(
    site: Site, version: int
) -> None:
    """Above a choice it would speak of a version that wrote neither reply."""
    page = site.open(pairs=True)
    site.ask("Two, please")
    site.choice.wait_for()
    move(site, "promote", version=version)
    look(site)
    look(site)
    assert lines(site) == ["Two, please"]
    site.pairs(False)
    page.get_by_role("button", name="First is better").click()
    expect(site.choice).to_have_count(0)
    site.ask_and_wait("Next?")
    assert lines(site) == ["Two, please", learned(version), "Next?"]


def test_the_sentence_counts_people_and_votes_in_plain_english(site: Site) -> None:
    page = site.open()

    def said(version: int, again: bool, counts: tuple[int, int, int] | None) -> str:
        picks, thumbs, people = counts or (0, 0, 0)
        learned = {"picks": picks, "thumbs": thumbs, "people": people} if counts else None
        facts = {"version": version, "again": again, "learned_from": learned}
        words = page.evaluate("async (facts) => (await import('./web/swap.js')).swapWords(facts)", facts)
        return str(words)

    assert said(0, True, None) == "Version 0 serves again."
    assert said(3, False, (1, 1, 1)) == "Version 3 serves now: learned from 1 pick and 1 thumb by 1 person."
    assert said(3, False, (12_000, 0, 24)) == "Version 3 serves now: learned from 12,000 picks by 24 people."
    assert said(3, True, (0, 5, 0)) == "Version 3 serves again: learned from 5 thumbs."
    assert said(3, False, (0, 0, 2)) == "Version 3 serves now."
