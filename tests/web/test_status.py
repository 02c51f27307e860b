"""The status line: since when which version answers, and the sentence in which the learner says what it waits for."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Locator, Route, expect

from server.store import cycles, leases
from tests.web.site import Site

pytestmark = pytest.mark.full

PATIENCE_MS = 15_000
"""Longer than the line's own beat."""


def line(site: Site) -> Locator:
    return site.page.locator("#status")


def test_the_line_says_since_when_a_new_version_answers(site: Site) -> None:
    page = site.open()
    assert line(site).inner_text().startswith("Answering since")

    def newer(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        body["data"][0]["hone"] |= {"revision": 1_000_000, "serving_since": "2031-03-05T14:03:00"}
        route.fulfill(response=answer, body=json.dumps(body))

    page.route("**/v1/models", newer)
    expect(line(site)).to_contain_text("A new version is answering since Mar 5, 14:03", timeout=PATIENCE_MS)
    assert line(site).get_attribute("data-tone") == "new"


def test_the_same_version_is_not_called_new(site: Site) -> None:
    page = site.open()
    with page.expect_response("**/v1/models", timeout=PATIENCE_MS):
        pass
    page.wait_for_timeout(100)
    assert "new version" not in line(site).inner_text()


def test_the_line_says_in_the_learners_own_words_what_it_waits_for(site: Site) -> None:
    sentence = "37 more votes or 14:00 UTC"
    site.server.store.write(lambda s: cycles.update_learner_state(s, "default", why_not=sentence) and None)
    site.server.store.write(lambda s: leases.show_up(s, holder="learner", seconds=60))
    site.open()
    expect(line(site)).to_contain_text(f"Learning: {sentence}")
    with site.server.client() as client:
        assert client.get("/v1/learner").json()["why_not"] == sentence
