"""Text as it appears: whole characters, and no part of a stop string."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.text import TextStream


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def pushed(text: str, *, stops: Sequence[str] = (), prefix: str = "") -> tuple[list[str], bool]:
    """What comes out byte by byte, `finish` last, until a stop string ends it."""
    stream = TextStream(decode, stops=stops, prefix=prefix)
    parts: list[str] = []
    for byte in text.encode():
        parts.append(stream.push(byte))
        if stream.stopped:
            return parts, True
    parts.append(stream.finish())
    return parts, stream.stopped


@given(st.text(max_size=40))
def test_the_parts_make_the_whole_and_no_part_breaks_a_character(text: str) -> None:
    parts, _ = pushed(text)
    assert "".join(parts) == text.rstrip("\ufffd")
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


def test_an_emoji_of_several_code_points_arrives_in_whole_code_points() -> None:
    family = "👨‍👩‍👧 ok"
    parts, _ = pushed(family)
    assert "".join(parts) == family
    assert next(p for p in parts if p) == "👨"


def test_half_a_character_at_the_end_is_dropped() -> None:
    stream = TextStream(decode)
    said = "".join(stream.push(b) for b in "ab🙂".encode()[:-1]) + stream.finish()
    assert said == "ab"


def test_wrong_bytes_do_not_hold_the_text_back_for_ever() -> None:
    stream = TextStream(decode)
    said = "".join(stream.push(0xFF) for _ in range(40))
    assert said
    assert "".join(stream.push(b) for b in b"done").endswith("done")


@given(
    st.text(alphabet="ab", max_size=30), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3)
)
def test_a_stop_string_cuts_where_it_first_appears(text: str, stops: list[str]) -> None:
    parts, stopped = pushed(text, stops=stops)
    said = "".join(parts)
    assert stopped == any(stop in text for stop in stops)
    assert not any(stop in said for stop in stops)
    assert text.startswith(said)
    if not stopped:
        assert said == text


def test_text_is_held_back_only_while_it_may_become_a_stop_string() -> None:
    stream = TextStream(decode, stops=["END"])
    assert [stream.push(b) for b in b"aENxEND"] == ["a", "", "", "ENx", "", "", ""]
    assert stream.stopped


def test_an_empty_stop_string_stops_nothing() -> None:
    assert pushed("abc", stops=[""]) == (["a", "b", "c", ""], False)


@pytest.mark.parametrize(("text", "said"), [(" hi", "hi"), ("  hi", " hi"), ("hi", "hi"), ("", "")])
def test_the_blank_before_a_reply_is_no_part_of_it(text: str, said: str) -> None:
    assert "".join(pushed(text, prefix=" ")[0]) == said
