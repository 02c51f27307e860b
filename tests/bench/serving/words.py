"""A vocabulary of made-up words in which the length of every prompt is known before it is tokenized.

Two-syllable words ("bako", "lime") are one token each, and every token is plain ASCII: so prompts have exactly as many
tokens as asked for, and every token that a random model writes is a piece of text of its own, for whoever streams it.
Owns the tokenizer and the prompts; knows no models.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

END, SYSTEM, USER, ASSISTANT = SPECIALS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
"""Their ids are 0 to 3."""
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FRAME = 3
"""Tokens that the template adds to one user message."""
SPACE, NEWLINE = "Ġ", "Ċ"
"""How a byte-level vocabulary writes them."""
SYLLABLES = tuple(c + v for c in "bcdfghjklmnpqrstvwxz" for v in "aeiou")


def two_syllables() -> Iterator[tuple[str, str]]:
    """Every word of two syllables, in a fixed order."""
    return ((first, second) for first in SYLLABLES for second in SYLLABLES)


def all_merges() -> Iterator[tuple[str, str]]:
    """Byte-pair merges without end in sight: syllables, words with and without a space before, then longer ones.

    The order is the rank: a space joins its syllable before that joins the next, so both forms of a word are whole.
    """
    for syllable in SYLLABLES:
        yield syllable[0], syllable[1]
    for syllable in SYLLABLES:
        yield SPACE, syllable
    for first, second in two_syllables():
        yield SPACE + first, second
        yield first, second
    for first, second in two_syllables():
        for third in SYLLABLES:
            yield first + second, third


def vocabulary(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Exactly `size` tokens with their ids, and the merges that make them."""
    first = [*SPECIALS, *map(chr, range(33, 127)), SPACE, NEWLINE]
    merges = list(islice(all_merges(), size - len(first)))
    tokens = [*first, *(a + b for a, b in merges)]
    ids = {token: i for i, token in enumerate(tokens)}
    assert len(ids) == size, f"{size} tokens cannot be made"
    return ids, merges


def tokenizer(size: int) -> Any:
    """The tokenizer of `size` tokens, as the `tokenizers` package has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    ids, merges = vocabulary(size)
    core = Tokenizer(models.BPE(ids, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIALS))
    return core


def save_tokenizer(folder: Path, *, size: int, context: int) -> None:
    """Write the tokenizer as plain files, without fields that only one release of transformers reads."""
    tokenizer(size).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "chat_template": TEMPLATE,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def known_words(size: int) -> list[str]:
    """The words that a vocabulary of `size` tokens has whole, with and without a space before them."""
    ids, _ = vocabulary(size)
    words = (first + second for first, second in two_syllables())
    return [word for word in words if word in ids and SPACE + word in ids]


def prompts(size: int, *, tokens: int, count: int, seed: int | str) -> list[str]:
    """`count` different user messages that are `tokens` tokens long each once the template is around them."""
    assert tokens > FRAME, f"a prompt has more than the {FRAME} tokens of its frame"
    words, rng = known_words(size), random.Random(f"prompts {seed}")
    return [" ".join(rng.choices(words, k=tokens - FRAME)) for _ in range(count)]


def framed(content: str) -> str:
    """A user message as the template writes it: for whoever takes text or ids instead of messages."""
    return f"{USER}{content}{END}{ASSISTANT}"
