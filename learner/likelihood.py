"""How likely the votes are, given a score for every response: picks, ties and thumbs in one model.

Owns the sentence "what would people with these scores in mind have said". Knows neither where scores come from
(`train_reward` has a network, `judge` a linear map) nor prompts, tokens or adapters.

Picks and ties (Rao and Kupper 1967), with D = score(first) - score(second) + side bias, ν >= 0 the tie width:
    P(first) = σ(D - ν)    P(second) = σ(-D - ν)    P(tie) = (e^{2ν} - 1) σ(D - ν) σ(-D - ν)
Thumbs: P(up) = σ(a · score + b_u), a > 0, with a leniency b_u of each user around a common one.
`both_bad` is a tie and two weak downs: it says that neither is better *and* that both are below what people want.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from learner.dataset import Dataset, Example, Outcome

FIRST, SECOND, TIE = 0, 1, 2
THUMB_SD = 0.1
"""Prior deviation of log a: thumbs and picks are clicks of the same people. A scale that costs nothing lets a joint fit
slip past the prior on the scores' weights: small weights, a large scale, and the thumbs are learnt by heart."""
_CODE = {Outcome.FIRST: FIRST, Outcome.SECOND: SECOND, Outcome.TIE: TIE, Outcome.BOTH_BAD: TIE}


class Votes(NamedTuple):
    """Votes as tensors. Examples and users are rows of tables held elsewhere; K comparisons, M thumbs."""

    first: Tensor
    """(K,) row of the example shown first."""
    second: Tensor
    """(K,)"""
    outcome: Tensor
    """(K,) FIRST, SECOND or TIE."""
    pair_weight: Tensor
    """(K,)"""
    pair_user: Tensor
    """(K,) row of the user."""
    example: Tensor
    """(M,)"""
    up: Tensor
    """(M,) 1 or 0."""
    thumb_weight: Tensor
    """(M,) a plain thumb of a user with full weight holds `thumb_weight` of the config."""
    thumb_user: Tensor
    """(M,)"""

    def weighted(self, per_user: Tensor) -> Votes:
        """The same votes with each user's counted `per_user[user]` times: (U,), a bootstrap's draw."""
        return self._replace(
            pair_weight=self.pair_weight * per_user[self.pair_user],
            thumb_weight=self.thumb_weight * per_user[self.thumb_user],
        )

    def picked(self, pairs: Tensor, thumbs: Tensor) -> Votes:
        """The comparisons and thumbs at these positions."""
        return Votes(*(x[pairs] for x in self[:5]), *(x[thumbs] for x in self[5:]))

    @property
    def total_weight(self) -> Tensor:
        return self.pair_weight.sum() + self.thumb_weight.sum()


class VoteTable(NamedTuple):
    """Votes with the tables their rows point into."""

    votes: Votes
    examples: tuple[Example, ...]
    users: tuple[str, ...]


def tabulate(dataset: Dataset, *, thumb_weight: float, both_bad_weight: float) -> VoteTable:
    """Rows in the dataset's order; an example that was voted on twice has one row."""
    rows: dict[Example, int] = {}
    users = {user: i for i, user in enumerate(dataset.users)}

    def row(example: Example) -> int:
        return rows.setdefault(example, len(rows))

    pairs = [
        (row(c.first), row(c.second), _CODE[c.outcome], c.weight, users[c.user]) for c in dataset.comparisons
    ]
    thumbs = [(row(t.example), float(t.up), t.weight * thumb_weight, users[t.user]) for t in dataset.thumbs]
    thumbs += [
        (row(example), 0.0, c.weight * thumb_weight * both_bad_weight, users[c.user])
        for c in dataset.comparisons
        if c.outcome is Outcome.BOTH_BAD
        for example in (c.first, c.second)
    ]
    return VoteTable(_columns(pairs, thumbs), tuple(rows), tuple(users))


def _columns(
    pairs: list[tuple[int, int, int, float, int]], thumbs: list[tuple[int, float, float, int]]
) -> Votes:
    def column(
        rows: list[tuple[int, int, int, float, int]] | list[tuple[int, float, float, int]],
        i: int,
        dtype: torch.dtype,
    ) -> Tensor:
        return torch.tensor([r[i] for r in rows], dtype=dtype)

    ids, real = torch.long, torch.float32
    return Votes(
        *(column(pairs, i, dtype) for i, dtype in enumerate((ids, ids, ids, real, ids))),
        *(column(thumbs, i, dtype) for i, dtype in enumerate((ids, real, real, ids))),
    )


class Manners(torch.nn.Module):
    """How people turn scores into votes: side bias, tie width, thumb scale, leniency in common and per user."""

    def __init__(self, users: int, *, intercept_sd: float) -> None:
        super().__init__()
        self.side = torch.nn.Parameter(torch.zeros(()))
        self.raw_tie = torch.nn.Parameter(torch.tensor(-1.0))
        self.log_thumb = torch.nn.Parameter(torch.zeros(()))
        self.common = torch.nn.Parameter(torch.zeros(()))
        self.leniency = torch.nn.Parameter(torch.zeros(users))
        self.intercept_sd = intercept_sd

    def pair_log_likelihood(self, scores: Tensor, votes: Votes) -> Tensor:
        """Of each comparison: (K,). `scores`: one for each example row."""
        gap = scores[votes.first] - scores[votes.second] + self.side
        tie = softplus(self.raw_tie) + 1e-4
        first, second = logsigmoid(gap - tie), logsigmoid(-gap - tie)
        neither = torch.log(torch.expm1(2 * tie)) + first + second
        return torch.stack([first, second, neither]).gather(0, votes.outcome[None])[0]

    def thumb_log_likelihood(self, scores: Tensor, votes: Votes) -> Tensor:
        """Of each thumb: (M,)."""
        logit = self.log_thumb.exp() * scores[votes.example] + self.common
        logit = logit + self.leniency[votes.thumb_user]
        return logsigmoid(torch.where(votes.up > 0.5, logit, -logit))

    def prior(self) -> Tensor:
        """Negative log prior, up to a constant: leniency is normal, side and tie are held mildly near their start."""
        return (
            0.5 * (self.leniency**2).sum() / self.intercept_sd**2
            + 0.5 * self.side**2
            + 0.5 * (self.raw_tie + 1.0) ** 2
            + 0.5 * (self.log_thumb / THUMB_SD) ** 2
        )

    @torch.no_grad()
    def summary(self) -> Mapping[str, float]:
        """For the manifest."""
        return {
            "side_bias": float(self.side),
            "tie_width": float(softplus(self.raw_tie)),
            "thumb_scale": float(self.log_thumb.exp()),
            "leniency": float(self.common),
        }


def negative_log_likelihood(manners: Manners, scores: Tensor, votes: Votes) -> Tensor:
    """Weighted sum over all votes, without the prior. Scalar."""
    pairs = manners.pair_log_likelihood(scores, votes) * votes.pair_weight
    thumbs = manners.thumb_log_likelihood(scores, votes) * votes.thumb_weight
    return -(pairs.sum() + thumbs.sum())


class LinearFit(NamedTuple):
    """Scores as a linear map of standardised features: score = ((x - mean) / sd) · weights."""

    weights: Tensor
    """(F,)"""
    mean: Tensor
    """(F,)"""
    sd: Tensor
    """(F,)"""
    manners: Manners

    def score(self, features: Tensor) -> Tensor:
        """(N, F) -> (N,)"""
        return (features - self.mean) / self.sd @ self.weights


def fit_linear(
    features: Tensor,
    votes: Votes,
    *,
    users: int,
    l2: float,
    intercept_sd: float,
    scale: Tensor | None = None,
    expected: Tensor | None = None,
) -> LinearFit:
    """The most probable linear scores for these votes: a normal prior on the weights.

    `features`: (N, F), one row for each example, standardised here. `scale`: (F,) relative to which a weight's prior
    has precision `l2`; without it 1/√F for all, so that a score's prior variance does not depend on how many
    features there are. `expected`: (F,) what a standard deviation of each feature moves a score before any vote, the
    prior's mean; zero without it. LBFGS from there: deterministic, milliseconds.
    """
    mean = features.mean(dim=0)
    sd = features.std(dim=0, unbiased=False)
    sd = torch.where(sd > 1e-6, sd, torch.full_like(sd, torch.inf))  # a constant feature says nothing
    scale = torch.full_like(mean, features.shape[1] ** -0.5) if scale is None else scale
    x = (features - mean) / sd * scale
    prior_mean = torch.zeros_like(mean) if expected is None else expected / scale
    weights = prior_mean.clone().requires_grad_()
    manners = Manners(users, intercept_sd=intercept_sd)
    optimiser = torch.optim.LBFGS(
        [weights, *manners.parameters()],
        max_iter=60,
        history_size=20,
        tolerance_grad=1e-4,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = negative_log_likelihood(manners, x @ weights, votes)
        loss = loss + 0.5 * l2 * ((weights - prior_mean) ** 2).sum() + manners.prior()
        loss.backward()
        return loss

    optimiser.step(closure)
    for parameter in manners.parameters():
        parameter.requires_grad_(False)
    return LinearFit(weights.detach() * scale, mean, sd, manners)
