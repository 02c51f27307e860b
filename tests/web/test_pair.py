"""Two replies: nothing can be clicked before both have ended, the pick is stored, the conversation goes on from it."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.web.site import Site

pytestmark = pytest.mark.full


def other(text: str, site: Site) -> str:
    return next(each for each in site.engine.texts if each != text)


def test_two_candidates_stream_and_nothing_can_be_clicked_until_both_have_ended(site: Site) -> None:
    site.engine.texts = ("First thing to know.", "Another way to see it all.")
    site.engine.close_gates()
    page = site.open(pairs=True)
    site.ask()
    expect(site.said("First thing to")).to_be_visible()
    expect(site.said("Another way to see it")).to_be_visible()
    assert site.buttons() == []

    site.engine.gates[0].set()
    expect(site.said("First thing to know.")).to_be_visible()
    page.wait_for_timeout(200)
    assert site.buttons() == []

    site.engine.gates[1].set()
    expect(site.choice).to_be_visible()
    labels = [label.split("\n")[0].strip() for label in site.buttons()]
    shown = [label.removesuffix(key).strip() for label, key in zip(labels, "12TBS", strict=True)]
    assert shown == ["First is better", "Second is better", "Tie", "Both bad", "Skip"]
    expect(site.tools).to_have_count(0)


def test_a_pick_is_stored_and_the_conversation_goes_on_from_it(site: Site) -> None:
    page = site.open(pairs=True)
    site.ask()
    site.choice.wait_for()
    picked = site.side("Second")
    dropped = other(picked, site)
    page.get_by_role("button", name="Second is better").click()
    expect(site.said("You preferred the second of two replies.")).to_be_visible()
    expect(site.said(dropped)).to_have_count(0)

    vote = site.votes("pick")[0]
    assert (vote["value"], vote["status"]) == ("second", "counted")
    turn = site.turn(vote["turn_id"])
    by_side = sorted(turn["replies"], key=lambda reply: reply["position"])
    assert [reply["text"] for reply in by_side] == [dropped, picked]

    site.ask("And then?")
    site.choice.wait_for()
    assert picked in site.engine.asked[-1]
    assert dropped not in site.engine.asked[-1]


@pytest.mark.parametrize(("label", "value"), [("Tie", "tie"), ("Both bad", "both_bad"), ("Skip", "skip")])
def test_without_a_preference_the_conversation_goes_on_from_the_first(
    site: Site, label: str, value: str
) -> None:
    page = site.open(pairs=True)
    site.ask()
    site.choice.wait_for()
    first = site.side("First")
    page.get_by_role("button", name=label, exact=True).click()
    site.tools.wait_for()
    assert site.votes("pick")[0]["value"] == value
    site.ask("And then?")
    site.choice.wait_for()
    assert first in site.engine.asked[-1]
    assert other(first, site) not in site.engine.asked[-1]


@pytest.mark.parametrize(
    ("key", "value"), [("1", "first"), ("2", "second"), ("t", "tie"), ("b", "both_bad"), ("s", "skip")]
)
def test_a_pick_needs_only_the_keyboard(site: Site, key: str, value: str) -> None:
    page = site.open(pairs=True)
    assert site.focused() == "composer-text"
    page.keyboard.type("How do I bake bread?")
    page.keyboard.press("Enter")
    expect(site.choice).to_be_focused()
    page.keyboard.press(key)
    site.tools.wait_for()
    assert site.votes("pick")[0]["value"] == value
    assert site.focused() == "composer-text"
    page.keyboard.type("And then?")
    assert site.box.input_value() == "And then?"


def test_a_pick_by_tab_and_space_works_as_well(site: Site) -> None:
    page = site.open(pairs=True)
    site.ask()
    expect(site.choice).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    site.tools.wait_for()
    assert site.votes("pick")[0]["value"] == "second"


def test_who_is_typing_keeps_the_keyboard(site: Site) -> None:
    site.engine.close_gates()
    page = site.open(pairs=True)
    site.ask()
    expect(site.said("Another way to see")).to_be_visible()
    page.keyboard.type("12t")
    site.engine.open_gates()
    site.choice.wait_for()
    page.keyboard.type("bs")
    assert site.box.input_value() == "12tbs"
    expect(site.choice).to_be_visible()


def test_writing_on_without_choosing_is_a_skip(site: Site) -> None:
    site.open(pairs=True)
    site.ask()
    site.choice.wait_for()
    first = site.side("First")
    site.pairs(False)
    site.ask_and_wait("Never mind, and tea?")
    expect(site.said("You skipped the comparison.")).to_be_visible()
    assert site.votes("pick")[0]["value"] == "skip"
    assert first in site.engine.asked[-1]


def test_two_equal_replies_ask_nothing(site: Site) -> None:
    site.engine.texts = ("The very same.", "The very same.")
    site.open(pairs=True)
    site.ask_and_wait()
    expect(site.choice).to_have_count(0)
    expect(site.said("The very same.", exact=True)).to_have_count(1)


def test_the_picked_reply_can_be_rated(site: Site) -> None:
    page = site.open(pairs=True)
    site.ask()
    site.choice.wait_for()
    picked = site.side("Second")
    page.keyboard.press("2")
    page.get_by_role("button", name="Good reply").click()
    expect(page.get_by_text("Thank you")).to_be_visible()
    vote = site.votes("thumb")[0]
    replies = {reply["id"]: reply["text"] for reply in site.turn(vote["turn_id"])["replies"]}
    assert replies[vote["target_id"]] == picked


def test_a_choice_left_open_is_still_there_after_a_reload(site: Site) -> None:
    page = site.open(pairs=True)
    site.ask()
    site.choice.wait_for()
    page.reload()
    page.get_by_role("button", name="First is better").click()
    site.tools.wait_for()
    assert site.votes("pick")[0]["value"] == "first"


def test_a_pair_that_was_stopped_asks_nothing(site: Site) -> None:
    site.engine.close_gates()
    page = site.open(pairs=True)
    site.ask()
    expect(site.said("Another way to see")).to_be_visible()
    page.get_by_role("button", name="Stop writing").click()
    expect(site.said("Stopped before its end.")).to_be_visible()
    expect(site.choice).to_have_count(0)


def test_a_pair_stands_side_by_side_and_stacked_on_a_phone(site: Site) -> None:
    page = site.open(pairs=True)
    site.ask()
    site.choice.wait_for()
    cards = page.locator(".card")
    left, right = cards.nth(0).bounding_box(), cards.nth(1).bounding_box()
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    page.set_viewport_size({"width": 375, "height": 700})
    upper, lower = cards.nth(0).bounding_box(), cards.nth(1).bounding_box()
    assert upper is not None
    assert lower is not None
    assert upper["y"] + upper["height"] < lower["y"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
