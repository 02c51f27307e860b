"""What a single token shows and stands for."""

import pytest

from server.prompts import Renderer
from server.spelling import Spelling, spell
from tests.fakes import byte_tokenizer


@pytest.mark.parametrize(
    ("text", "entry", "raw"),
    [
        (" rain", "Ġrain", b" rain"),
        ("東", "▁東", "東".encode()),
        ("\ufffd", "<0xE6>", b"\xe6"),
        ("\ufffd", "æĿ", b"\xe6\x9d"),
        ("\ufffd", "ï¿½", "\ufffd".encode()),  # a whole character after all
        ("\ufffd", "▁?", None),
        ("a\ufffd", "<0xE6>", None),
    ],
)
def test_a_token_says_its_bytes_where_its_vocabulary_does(text: str, entry: str, raw: bytes | None) -> None:
    assert spell(text, entry=entry) == Spelling(text, raw)


def test_the_bytes_of_a_texts_tokens_are_the_text() -> None:
    renderer = Renderer(byte_tokenizer(), context=128)
    text = "naïve 東京 🙂\n\ttabs\x7f\u00ad"
    pieces = [renderer.spelling(i) for i in renderer.encode_text(text)]
    assert b"".join(piece.raw or b"" for piece in pieces).decode() == text
    assert "\ufffd" in {piece.text for piece in pieces}


def test_a_special_token_shows_its_name_and_is_no_part_of_the_text() -> None:
    renderer = Renderer(byte_tokenizer(), context=128)
    assert renderer.spelling(256) == Spelling("<|end|>", None)
