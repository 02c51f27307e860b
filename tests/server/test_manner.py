"""What is counted of how replies are written, on texts short enough to count by eye."""

from __future__ import annotations

import pytest

from server.manner import Manner, has_emoji, manner_of


def one(text: str) -> Manner:
    return manner_of([text], [7])


def test_lengths_are_means_and_the_rest_are_shares_of_replies() -> None:
    found = manner_of(["Fine! Yours?", "- tea\n- milk", "", "One two three 🙂"], [3, 6, 1, 4])
    assert found == Manner(
        tokens=3.5, words=(2 + 4 + 0 + 4) / 4, lists=0.25, questions=0.25, emoji=0.25, exclamations=0.25
    )


@pytest.mark.parametrize("text", ["- a", "So:\n* a\n* b", "• a", "1. a\n2. b", "  3) a"])
def test_a_list_is_what_the_page_draws_as_one(text: str) -> None:
    assert one(text).lists == 1


@pytest.mark.parametrize("text", ["a - b", "-5 degrees", "It is 3.5 metres", "1.", "*stars*", "-\n\na"])
def test_other_lines_are_no_list(text: str) -> None:
    assert one(text).lists == 0


@pytest.mark.parametrize(
    ("text", "asks", "exclaims"),
    [
        ("Really?", 1, 0),
        ('"Really?" he said', 1, 0),
        ("see http://a.b/c?d=e", 0, 0),
        ("本当ですか？", 1, 0),
        ("هل هذا صحيح؟", 1, 0),
        ("Hello!", 0, 1),
        ("すごい！", 0, 1),
        ("What?!", 1, 1),
        ("if (a != b) use !important", 0, 0),
        ("Nothing.", 0, 0),
    ],
)
def test_questions_and_exclamations_are_known_in_several_scripts(text: str, asks: int, exclaims: int) -> None:
    found = one(text)
    assert (found.questions, found.exclamations) == (asks, exclaims)


@pytest.mark.parametrize(
    "text", ["🙂", "☕", "✨", "⭐", "❤️", "🇫🇷", "1️⃣", "👩‍👩‍👧", "🀄", "🈁", "👍🏽", "so ✅ done"]
)
def test_emoji(text: str) -> None:
    assert has_emoji(text)


@pytest.mark.parametrize(
    "text", ["", "plain", "✓ done", "♥", "→", "日本語〒㊀", "ꀀ꒐", "e\u0301", "#1 *", "©"]
)
def test_other_symbols_are_no_emoji(text: str) -> None:
    assert not has_emoji(text)
