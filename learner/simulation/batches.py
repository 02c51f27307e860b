"""Training batches as a pure function of seed and place: a run that was killed goes on with the very same ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from learner.simulation.vocabulary import encode
from learner.simulation.world import Focus, Message, World


class Batch(NamedTuple):
    """token_ids (B, T), right-padded; weights (B, T): how much the prediction of each token counts."""

    token_ids: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of dialogue, and what the users' own words weigh in the loss."""

    drill: float = 0.25
    recall: float = 0.35
    user_weight: float = 0.1

    def focus(self, rng: random.Random) -> Focus:
        draw = rng.random()
        if draw < self.drill:
            return Focus.DRILL
        return Focus.RECALL if draw < self.drill + self.recall else Focus.PLAIN


class Batches:
    """Dialogues in pools: each pool is sorted by length and cut, so that little of a batch is padding."""

    def __init__(
        self, world: World, tokenizer: PreTrainedTokenizerFast, seed: int, *, tokens: int, context: int
    ) -> None:
        self._world, self._tokenizer, self._seed = world, tokenizer, seed
        self._tokens, self._context = tokens, context

    def pool(self, number: int, mixture: Mixture, *, size: int = 16) -> list[Batch]:
        """About `size` batches of at most `tokens` padded tokens each, in random order."""
        rng = random.Random(f"pool:{self._seed}:{number}")
        rows: list[tuple[list[int], list[float]]] = []
        total = 0
        while total < size * self._tokens:
            rows.append(self._row(rng, mixture))
            total += len(rows[-1][0])
        rows.sort(key=lambda row: len(row[0]))
        batches = [self._pad(chunk) for chunk in self._cut(rows)]
        rng.shuffle(batches)
        return batches

    def _row(self, rng: random.Random, mixture: Mixture) -> tuple[list[int], list[float]]:
        while True:
            ids: list[int] = []
            weights: list[float] = []
            dialogue = _mistyped(self._world.dialogue(rng, focus=mixture.focus(rng)), rng)
            for role, turn in encode(self._tokenizer, dialogue):
                weight = {"assistant": 1.0, "user": mixture.user_weight}.get(role, 0.0)
                ids += turn
                weights += [0.0] + [weight] * (len(turn) - 1)
            if len(ids) <= self._context:
                return ids, weights

    def _cut(
        self, rows: list[tuple[list[int], list[float]]]
    ) -> Iterator[list[tuple[list[int], list[float]]]]:
        chunk: list[tuple[list[int], list[float]]] = []
        for row in rows:
            if chunk and (len(chunk) + 1) * len(row[0]) > self._tokens:
                yield chunk
                chunk = []
            chunk.append(row)
        yield chunk

    def _pad(self, rows: list[tuple[list[int], list[float]]]) -> Batch:
        longest = max(len(ids) for ids, _ in rows)
        token_ids = torch.full((len(rows), longest), self._tokenizer.pad_token_id, dtype=torch.long)
        weights = torch.zeros(len(rows), longest)
        for i, (ids, values) in enumerate(rows):
            token_ids[i, : len(ids)] = torch.tensor(ids)
            weights[i, : len(values)] = torch.tensor(values)
        return Batch(token_ids, weights)


def _mistyped(messages: list[Message], rng: random.Random, *, share: float = 0.08) -> list[Message]:
    """The same dialogue with a slip of the finger in some user messages, never in a word that a reply repeats."""
    replied = " ".join(message["content"] for message in messages if message["role"] == "assistant").lower()
    return [
        {**message, "content": _slip(message["content"], replied, rng)}
        if message["role"] == "user" and rng.random() < share
        else message
        for message in messages
    ]


def _slip(text: str, replied: str, rng: random.Random) -> str:
    words = text.split(" ")
    at = rng.randrange(len(words))
    word = words[at]
    if len(word) < 4 or not word.isalpha() or word.lower() in replied:
        return text
    letter = rng.randrange(1, len(word) - 1)
    before, after = word[:letter], word[letter:]
    words[at] = rng.choice(
        (before + after[1] + after[0] + after[2:], before + after[1:], before + after[0] + after)
    )
    return " ".join(words)
