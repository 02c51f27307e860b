"""What a reward model reads of a response: its tokens' states, the kinds of tokens in it, and a few plain numbers.

Every feature can be had of every beginning of a response as well, for a critic that asks what a reply is worth so far.
Knows nothing of heads, of scores and of votes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from server.modeling import (
    Pair,
    Rows,
    gather_rows,
    logprobs_of_states,
    mean_over,
    micro_batches,
    pad_rows,
    states_at,
    use_adapter,
)
from server.scoring.codebook import CodeBook, make_book, sizes

DEPTHS = (0.0, 0.5, 0.8, 1.0)
"""Which layers features are read from, as shares of the depth; the last is what the head reads."""
KINDS = ((1, 64), (1, 256), (2, 64), (2, 256))
"""The code book's clusterings: which of the depths, and how many clusters."""
PLAIN = 3
"""How many plain features there are."""
STATES_SHARE, CODES_SHARE, PLAIN_SHARE = 0.7, 0.7, 0.4
"""What all states, each clustering and the plain features may move a score, one beside the other."""


def features(peft_model: Any, rows: Rows, book: CodeBook, *, fixed: Tensor | None = None) -> Tensor:
    """Features of responses: mean and sum of the states at each depth under the active adapter, then `fixed`: (B, F).

    With a few hundred votes the response's tokens pooled at several depths order unseen replies better than the last
    layer or the last token: a style is spread over the reply, and early layers still know which words it used. The
    mean says how much of the reply is so, the sum how much of it there is ("an emoji", "three items").
    `fixed` are those that no adapter changes, counts of `book`'s codes and plain ones, from an earlier pass over the
    same rows under the bare base; without them the bare base must be active, and they are read in this pass.
    """
    states = states_at(peft_model, rows.token_ids, rows.positions, DEPTHS)
    tokens = [gather_rows(state, rows.at) for state in states]
    means = [mean_over(state, rows.is_response) for state in tokens]
    count = rows.is_response.sum(dim=1, keepdim=True)
    if fixed is None:
        counts = [one.counts(one.codes(tokens[one.depth]), rows.is_response) for one in book]
        plain = plain_prefixes(logprobs_of_states(peft_model, states[-1], rows), rows)[:, -1]
        fixed = torch.cat([*counts, plain], dim=1)
    return torch.cat([*means, *(mean * count for mean in means), fixed], dim=1)


@torch.no_grad()
def make_code_book(peft_model: Any, pairs: Sequence[Pair], *, seed: int, micro_batch: int = 32) -> CodeBook:
    """Kinds of tokens in these responses, as the bare base sees them. Leaves the adapters switched off."""
    use_adapter(peft_model, None, trainable=False)
    device = next(peft_model.parameters()).device
    tokens: dict[int, list[Tensor]] = {depth: [] for depth, _ in KINDS}
    deepest = 0
    for chosen in micro_batches(pairs, size=micro_batch):
        rows = pad_rows([pairs[i] for i in chosen], device=device)
        states = states_at(peft_model, rows.token_ids, rows.positions, DEPTHS)
        deepest = len(states) - 1  # in a model of few layers some depths are one
        for depth, found in tokens.items():
            found.append(gather_rows(states[min(depth, deepest)], rows.at)[rows.is_response].float())
    return tuple(
        make_book(torch.cat(tokens[depth]), depth=min(depth, deepest), size=size, seed=seed)
        for depth, size in KINDS
    )


def fixed_count(book: CodeBook) -> int:
    """How many features no adapter changes."""
    return sum(sizes(book)) + PLAIN


def plain_prefixes(logprobs: Tensor, rows: Rows) -> Tensor:
    """Log length, and mean and least log probability under the bare base, of every beginning: (B, 1 + R, PLAIN).

    What the bare base itself would hardly have written, people often find wrong: off the subject, broken, a slip.
    These two numbers say so directly, and no linear map of mean states does.
    """
    count = rows.is_response.cumsum(dim=1).float()
    running = [torch.log1p(count), logprobs.cumsum(dim=1) / count.clamp(min=1), logprobs.cummin(dim=1).values]
    return functional.pad(torch.stack(running, dim=2), (0, 0, 1, 0))


def fluency(count: int) -> Tensor:
    """1 for each of `count` features that says how likely the bare base finds a response, 0 for all others: (F,)."""
    share = torch.zeros(count)
    share[-(PLAIN - 1) :] = 1.0
    return share


def feature_scale(count: int, book: CodeBook) -> Tensor:
    """How much each of `count` features may move a score, a priori: (F,), for a prior on weights of unit precision.

    All states share theirs whatever their number, and so do the codes of each clustering and the plain features: a
    single number beside hundreds of states would never be heard.
    """
    blocks = [
        (count - fixed_count(book), STATES_SHARE),
        *((size, CODES_SHARE) for size in sizes(book)),
        (PLAIN, PLAIN_SHARE),
    ]
    return torch.cat([torch.full((size,), share * size**-0.5) for size, share in blocks])
