"""One reply: it streams, can be rated when it has ended, and the conversation goes on from what stands there."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.server.live import wait_until
from tests.web.site import QUESTION, Site

pytestmark = pytest.mark.full


def test_a_reply_streams_and_can_be_rated_only_after_its_end(site: Site) -> None:
    site.engine.texts = ("Grind the beans fresh and pour slowly.",)
    site.engine.close_gates()
    page = site.open()
    site.ask()
    expect(site.said("Grind the beans fresh and pour")).to_be_visible()
    assert site.buttons() == []
    expect(page.get_by_role("button", name="Stop writing")).to_be_visible()

    site.engine.open_gates()
    expect(site.said("pour slowly.")).to_be_visible()
    expect(site.tools).to_be_visible()
    assert site.buttons() == ["Good reply", "Bad reply", "Edit reply", "Copy reply", "Write another reply"]
    expect(page.get_by_role("button", name="Stop writing")).to_be_hidden()


def test_a_starter_begins_the_conversation(site: Site) -> None:
    page = site.open()
    page.get_by_role("button", name=QUESTION).click()
    site.tools.wait_for()
    assert QUESTION in site.engine.asked[-1]
    expect(page.get_by_role("heading", name="What can I help with?")).to_be_hidden()


def test_a_thumb_is_stored_replaced_and_taken_back(site: Site) -> None:
    page = site.open()
    site.ask_and_wait()
    up, down = page.get_by_role("button", name="Good reply"), page.get_by_role("button", name="Bad reply")
    up.click()
    expect(up).to_have_attribute("aria-pressed", "true")
    first = site.votes("thumb")[0]
    assert (first["value"], first["status"]) == ("up", "counted")

    down.click()
    expect(down).to_have_attribute("aria-pressed", "true")
    expect(up).to_have_attribute("aria-pressed", "false")
    second = site.votes("thumb")[0]
    assert (second["value"], second["target_id"]) == ("down", first["target_id"])

    down.click()
    expect(down).to_have_attribute("aria-pressed", "false")
    with site.server.client() as client:
        receipt = client.get(f"/v1/feedback/{second['id']}").json()
    assert receipt["status"] == "retracted"


def test_an_edit_is_stored_and_the_conversation_goes_on_from_it(site: Site) -> None:
    page = site.open()
    site.ask_and_wait()
    page.get_by_role("button", name="Edit reply").click()
    editor = page.get_by_role("textbox", name="What the reply should have been")
    expect(editor).to_be_focused()
    editor.fill("Use fresh water.")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Edited by you")).to_be_visible()
    assert site.votes("edit")[0]["text"] == "Use fresh water."

    site.ask_and_wait("And then?")
    assert "Use fresh water." in site.engine.asked[-1]
    assert "First thing to know." not in site.engine.asked[-1]


def test_an_edit_can_be_left_with_escape_and_changes_nothing(site: Site) -> None:
    page = site.open()
    site.ask_and_wait()
    before = len(site.votes("edit"))
    page.get_by_role("button", name="Edit reply").click()
    page.keyboard.type("something else")
    page.keyboard.press("Escape")
    expect(site.said("First thing to know.")).to_be_visible()
    assert site.focused() == "Edit reply"
    assert len(site.votes("edit")) == before


def test_copy_takes_the_reply_as_it_was_written_and_is_noted(site: Site) -> None:
    site.engine.texts = ("Use **fresh** beans.",)
    page = site.open()
    site.ask_and_wait()
    page.get_by_role("button", name="Copy reply").click()
    wait_until(lambda: page.evaluate("navigator.clipboard.readText()") == "Use **fresh** beans.")
    assert wait_until(lambda: site.votes("signal"))[0]["criterion"] == "copy"


def test_another_reply_replaces_the_last_and_the_wish_is_noted(site: Site) -> None:
    page = site.open()
    site.ask_and_wait()
    site.engine.texts = ("A better reply.",)
    page.get_by_role("button", name="Write another reply").click()
    expect(site.said("A better reply.")).to_be_visible()
    expect(site.said("First thing to know.")).to_have_count(0)
    assert wait_until(lambda: site.votes("signal"))[0]["criterion"] == "regenerate"
    assert "First thing" not in site.engine.asked[-1]


def test_stop_keeps_what_was_written_and_offers_no_vote(site: Site) -> None:
    site.engine.texts = ("A long story that never ends",)
    site.engine.close_gates()
    page = site.open()
    site.ask()
    expect(site.said("A long story that never")).to_be_visible()
    page.get_by_role("button", name="Stop writing").click()
    expect(site.said("Stopped before its end.")).to_be_visible()
    assert site.buttons() == ["Copy reply", "Write another reply"]

    site.engine.open_gates()
    site.ask_and_wait("Go on")
    assert "A long story that never" in site.engine.asked[-1]


def test_enter_sends_and_shift_enter_starts_a_line(site: Site) -> None:
    page = site.open()
    site.box.fill("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert site.box.input_value() == "one\ntwo"
    page.keyboard.press("Enter")
    site.tools.wait_for()
    assert site.box.input_value() == ""
    assert "one\ntwo" in site.engine.asked[-1]


def test_enter_that_ends_a_word_of_an_input_method_does_not_send(site: Site) -> None:
    page = site.open()
    site.box.fill("にほん")
    site.box.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
    page.wait_for_timeout(200)
    assert site.box.input_value() == "にほん"
    assert site.engine.asked == []


def test_the_box_grows_with_its_text(site: Site) -> None:
    site.open()
    low = site.box.bounding_box()["height"]  # type: ignore[index]
    site.box.fill("a\nb\nc\nd")
    assert site.box.bounding_box()["height"] > low + 40  # type: ignore[index]


def test_a_conversation_survives_a_reload_until_a_new_one_begins(site: Site) -> None:
    page = site.open()
    site.ask_and_wait()
    page.reload()
    expect(site.said("First thing to know.")).to_be_visible()
    site.ask_and_wait("And then?")
    assert "First thing to know." in site.engine.asked[-1]

    page.get_by_role("button", name="New chat").click()
    expect(site.said("First thing to know.")).to_have_count(0)
    page.reload()
    expect(page.get_by_role("heading", name="What can I help with?")).to_be_visible()
    site.ask_and_wait("Hello")
    assert "First thing to know." not in site.engine.asked[-1]


def test_markup_in_a_reply_or_a_question_is_only_text(site: Site) -> None:
    attack = "<img src=x onerror=\"document.title='broken'\"> <script>document.title='broken'</script>"
    site.engine.texts = (f"Look: {attack}\n\n- {attack}\n\n```\n{attack}\n```",)
    page = site.open()
    site.ask_and_wait(f"Say {attack}")
    assert page.locator("#transcript img, #transcript script").count() == 0
    assert page.locator("#transcript").inner_text().count(attack) == 4
    assert page.title() == "Hone"


def test_every_script_keeps_its_direction_and_its_letters(site: Site) -> None:
    site.engine.texts = ("שלום עולם 👩‍👩‍👧",)
    site.open()
    site.ask_and_wait("مرحبا بالعالم")
    reply = site.said("שלום עולם 👩‍👩‍👧")
    assert reply.evaluate("node => getComputedStyle(node).direction") == "rtl"
    assert site.said("مرحبا بالعالم").evaluate("node => getComputedStyle(node).direction") == "rtl"
    assert "مرحبا بالعالم" in site.engine.asked[-1]


def test_a_finished_reply_is_read_out_once_and_the_stream_is_not(site: Site) -> None:
    site.engine.close_gates()
    page = site.open()
    site.ask()
    expect(site.said("First thing to")).to_be_visible()
    assert page.locator("#announcer").inner_text() == ""
    assert page.locator("#transcript").evaluate("node => node.closest('[aria-live]')") is None
    site.engine.open_gates()
    expect(page.locator("#announcer")).to_have_text("First thing to know.")
