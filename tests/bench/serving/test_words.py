"""Prompts are exactly as long as asked for, and every token is text that can be sent at once."""

import pytest

from tests.bench.serving import words
from tests.bench.serving.shapes import SHAPES


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_prompts_have_exactly_the_tokens_asked_for(shape: object) -> None:
    size = shape.vocabulary  # type: ignore[attr-defined]
    core = words.tokenizer(size)
    assert core.get_vocab_size() == size
    for tokens in (4, 64, 256):
        made = words.prompts(size, tokens=tokens, count=20, seed=1)
        assert {len(core.encode(words.framed(text)).ids) for text in made} == {tokens}


def test_prompts_differ_between_seeds_and_within_one() -> None:
    one, other = (words.prompts(8192, tokens=64, count=50, seed=seed) for seed in (1, 2))
    assert len({*one, *other}) == 100
    assert one == words.prompts(8192, tokens=64, count=50, seed=1)
    assert len({text.split()[0] for text in one}) > 40, "a prefix cache would find something"


def test_every_token_is_a_piece_of_text_of_its_own() -> None:
    """A token that is half a character would be held back by a server and look like two that came at once."""
    core = words.tokenizer(8192)
    assert all(core.decode([i]) for i in range(len(words.SPECIALS), 8192))
    ids = [4095, 17, 8191, 300, 300, 5]
    assert core.decode(ids) == "".join(core.decode([i]) for i in ids)
    assert core.decode(ids).isascii()


def test_special_tokens_come_first() -> None:
    core = words.tokenizer(8192)
    assert [core.token_to_id(name) for name in words.SPECIALS] == [0, 1, 2, 3]
