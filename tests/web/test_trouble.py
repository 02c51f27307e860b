"""When something goes wrong, the page says so in plain words and offers a way on."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect
from sqlmodel import Session, delete

from server.errors import Busy, Unavailable
from server.store.tables import SessionSecret
from tests.web.site import Site

pytestmark = pytest.mark.full


def test_a_connection_lost_in_mid_stream_offers_another_try(site: Site) -> None:
    site.engine.close_gates()
    page = site.open()
    site.ask()
    expect(site.said("First thing to")).to_be_visible()
    site.wire.cut()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The connection was lost before the reply was finished.")
    expect(site.said("First thing to")).to_be_visible()
    assert site.buttons() == ["Try again"]

    site.wire.mend()
    site.engine.open_gates()
    page.get_by_role("button", name="Try again").click()
    expect(site.said("First thing to know.")).to_be_visible()
    expect(site.tools).to_be_visible()
    expect(alert).to_have_count(0)


def test_a_lost_turn_is_left_out_when_one_writes_on(site: Site) -> None:
    site.engine.close_gates()
    page = site.open()
    site.ask("The first question")
    expect(site.said("First thing to")).to_be_visible()
    site.wire.cut()
    page.get_by_role("alert").wait_for()
    site.wire.mend()
    site.engine.open_gates()
    site.ask_and_wait("The second question")
    assert "The first question" not in site.engine.asked[-1]


def test_a_server_that_is_away_is_named_and_found_again(site: Site) -> None:
    page = site.open()
    site.wire.cut()
    site.ask()
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    expect(page.get_by_role("status").first).to_have_text("The server is away. Trying again.", timeout=15_000)
    site.wire.mend()
    page.get_by_role("button", name="Try again").click()
    expect(site.tools).to_be_visible()
    expect(page.get_by_role("status").first).to_contain_text("Answering since", timeout=15_000)


def test_a_busy_server_is_asked_again_after_the_time_it_named(site: Site) -> None:
    page = site.open()
    site.engine.refusals = [Busy("all places are taken", retry_after=2)]
    site.ask()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The assistant is busy with other conversations.")
    expect(alert).to_contain_text("in 1 s")
    assert len(site.engine.asked) == 1
    expect(site.tools).to_be_visible()
    assert len(site.engine.asked) == 2


def test_an_error_in_mid_stream_is_told_in_the_servers_words(site: Site) -> None:
    site.engine.breakdown = Unavailable("The engine is away for a moment.", code="engine_unavailable")
    page = site.open()
    site.ask()
    expect(page.get_by_role("alert")).to_contain_text("The engine is away for a moment.")
    site.engine.breakdown = None
    page.get_by_role("button", name="Try again").click()
    expect(site.tools).to_be_visible()


def test_a_message_too_long_for_the_context_is_refused_in_plain_words(site: Site) -> None:
    page = site.open()
    site.ask("long " * 5000)
    expect(page.get_by_role("alert")).to_contain_text("This message is too long for the assistant to read.")
    assert site.engine.asked == []


def test_a_session_that_ended_is_renewed_without_a_word(site: Site) -> None:
    """The secrets behind all sessions are gone, as after a restored backup."""
    page = site.open()
    site.ask_and_wait()

    def forget(session: Session) -> None:
        session.exec(delete(SessionSecret))

    site.server.store.write(forget)
    page.wait_for_timeout(2500)  # a server remembers secrets for two seconds
    site.ask_and_wait("And then?")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_conversation_unknown_to_the_server_goes_on_under_a_new_name(site: Site) -> None:
    """As when the data directory was replaced while the page stood open."""
    page = site.open()
    site.ask_and_wait()
    page.evaluate(
        "localStorage.setItem('hone.conversation',"
        " localStorage.getItem('hone.conversation').replace(/conv_[^\"]*/, 'conv_0'))"
    )
    page.reload()
    site.ask_and_wait("And then?")
    assert "First thing to know." in site.engine.asked[-1]


def test_a_pick_that_did_not_arrive_is_asked_for_again(site: Site) -> None:
    page = site.open(pairs=True)
    site.ask()
    site.choice.wait_for()
    before = len(site.votes("pick"))
    site.wire.cut()
    page.get_by_role("button", name="First is better").click()
    expect(page.get_by_role("alert")).to_contain_text("Your choice was not saved.")
    assert len(site.votes("pick")) == before
    site.wire.mend()
    page.get_by_role("button", name="First is better").click()
    site.tools.wait_for()
    assert len(site.votes("pick")) == before + 1


def test_a_thumb_that_did_not_arrive_is_not_shown_as_given(site: Site) -> None:
    page = site.open()
    site.ask_and_wait()
    site.wire.cut()
    page.get_by_role("button", name="Good reply").click()
    expect(page.get_by_text("Not saved")).to_be_visible()
    expect(page.get_by_role("button", name="Good reply")).to_have_attribute("aria-pressed", "false")


def test_an_unreadable_copy_does_not_keep_the_page_from_working(site: Site) -> None:
    page = site.open()
    page.evaluate("localStorage.setItem('hone.conversation', '{\"turns\": [{}, 7]}')")
    page.reload()
    expect(page.get_by_role("heading", name="What can I help with?")).to_be_visible()
    site.ask_and_wait()
