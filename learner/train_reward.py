"""Fits the reward model that `server.scoring` serves, to picks, ties and thumbs together.

votes -> linear heads on the bare base -> with many votes: small adapters, trained on from there -> normalised on
base replies

A few hundred picks settle a linear head long before they settle an adapter: below `adapt_from` all of them go to the
heads; above, some users are held out to stop the adapters' training, which may keep a head as it is. Each member of
the ensemble sees its own bootstrap over users (rows of one person are no independent evidence). Knows nothing of the
store, of PPO or of the gate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learner.config import RewardConfig
from learner.dataset import Dataset
from learner.features import active_features, base_features
from learner.likelihood import (
    LinearFit,
    Manners,
    Votes,
    VoteTable,
    fit_linear,
    negative_log_likelihood,
    tabulate,
)
from server.modeling import Pair, new_adapter, pad_rows, use_adapter
from server.scoring import CodeBook, Head, RewardModel, feature_scale, features, fixed_count, fluency

Progress = Callable[[float, dict[str, float]], None]
"""Called with the share done and what is worth showing."""

PREFIX = "reward"


@dataclass(frozen=True, slots=True)
class FittedReward:
    """A reward model, normalised, and what its fit had to say."""

    model: RewardModel
    metrics: dict[str, float]


class _Split(NamedTuple):
    """Votes that train and votes that stop the training, by user."""

    train: Votes
    holdout: Votes


class _Examples(NamedTuple):
    """What was voted on, in the votes' rows."""

    pairs: Sequence[Pair]
    book: CodeBook
    fixed: Tensor
    """(N, …) features that no adapter changes."""


def fit_reward(
    peft_model: Any,
    dataset: Dataset,
    config: RewardConfig,
    *,
    book: CodeBook,
    base_replies: Sequence[Pair],
    seed: int,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> FittedReward:
    """Fit on the dataset's votes (the caller passes training users only).

    `book`: the kinds of tokens that are counted. `base_replies`: replies of the bare base that define score 0 and 1.
    `check` is called between steps and may raise to stop.
    """
    table = tabulate(dataset, thumb_weight=config.thumb_weight, both_bad_weight=config.both_bad_weight)
    if not table.examples:
        raise ValueError("there are no votes to fit a reward model to")
    generator = torch.Generator().manual_seed(seed)
    is_linear = len(dataset.comparisons) + len(dataset.thumbs) < config.adapt_from
    split = _split_by_user(table, share=0.0 if is_linear else config.holdout_share, generator=generator)
    bare = base_features(peft_model, table.examples, book, micro_batch=config.batch)
    scale = feature_scale(bare.shape[1], book)
    whole = _start(table, bare, split.train, config, scale)
    starts = [
        _start(table, bare, _bootstrap(split.train, len(table.users), generator), config, scale)
        for _ in range(config.heads if is_linear else config.members)
    ]
    names: list[str | None] = [None] * len(starts)
    heads = [start.head for start in starts]
    found = {}
    if is_linear:
        heads = _around(whole.head, heads)
    else:
        examples = _Examples(table.examples, book, bare[:, -fixed_count(book) :])
        trained: list[_Trained] = []
        for k, start in enumerate(starts):

            def report(epoch: int, loss: float, k: int = k) -> None:
                if progress:
                    share = (k + epoch / max(config.max_epochs, 1)) / config.members
                    progress(share, {"member": float(k), "epoch": float(epoch), "holdout_nll": loss})

            name = f"{PREFIX}{k}"
            peft_model = new_adapter(peft_model, name, rank=config.rank, alpha=config.alpha, seed=seed + k)
            result = _train_member(
                peft_model, name, start, split.holdout, examples, config,
                generator=generator, report=report, check=check,
            )  # fmt: skip
            # An adapter that was never moved adds nothing: without it, members share one forward pass.
            names[k] = None if result.epoch == 0 else name
            heads[k] = result.head
            trained.append(result)
        found = {
            "holdout_nll": fmean(one.holdout_nll for one in trained),
            "epochs": fmean(one.epoch for one in trained),
        }
    model = RewardModel(peft_model, tuple(names), tuple(heads), book).normalised(base_replies)
    metrics = {
        "examples": float(len(table.examples)),
        "comparisons": float(len(table.votes.first)),
        "thumbs": float(len(dataset.thumbs)),
        "users": float(len(table.users)),
        **found,
        **{f"probe_{key}": value for key, value in whole.manners.summary().items()},
        **accuracy(model, dataset),
    }
    return FittedReward(model, metrics)


def accuracy(model: RewardModel, dataset: Dataset) -> dict[str, float]:
    """Share of decided picks that the ensemble's mean orders as the person did, and how much the members disagree."""
    decided = [c for c in dataset.comparisons if c.decided]
    if not decided:
        return {"accuracy": float("nan"), "disagreement": float("nan")}
    first = model.score([c.first.prompt_ids for c in decided], [c.first.response_ids for c in decided])
    second = model.score([c.second.prompt_ids for c in decided], [c.second.response_ids for c in decided])
    chose_first = torch.tensor([c.outcome == "first" for c in decided])
    right = (first.mean > second.mean) == chose_first
    return {
        "accuracy": float(right.float().mean()),
        "disagreement": float(torch.cat([first.std, second.std]).mean()),
    }


def _split_by_user(table: VoteTable, *, share: float, generator: torch.Generator) -> _Split:
    """Hold out the votes of a share of the users; of nobody for no share, or when there are fewer than four."""
    users = len(table.users)
    held = torch.zeros(users, dtype=torch.bool)
    if share and users >= 4:
        held[torch.randperm(users, generator=generator)[: max(1, round(share * users))]] = True
    votes = table.votes
    pairs, thumbs = held[votes.pair_user], held[votes.thumb_user]

    def at(mask: Tensor) -> Tensor:
        return mask.nonzero()[:, 0]

    return _Split(votes.picked(at(~pairs), at(~thumbs)), votes.picked(at(pairs), at(thumbs)))


class _Start(NamedTuple):
    """A member before its adapter is trained, if ever: what some votes say of the bare base's states."""

    head: Head
    manners: Manners
    votes: Votes


def _start(table: VoteTable, bare: Tensor, votes: Votes, config: RewardConfig, scale: Tensor) -> _Start:
    """A linear head on `bare`, (N, F) under the bare base, fitted to `votes`."""
    fit = fit_linear(
        bare,
        votes,
        users=len(table.users),
        l2=config.probe_l2,
        intercept_sd=config.intercept_sd,
        scale=scale,
        expected=config.fluency * fluency(bare.shape[1]),
    )
    return _Start(_head_of(fit), fit.manners, votes)


def _bootstrap(votes: Votes, users: int, generator: torch.Generator) -> Votes:
    """Each user's votes as often as a Poisson draw of mean 1 says."""
    drawn = votes.weighted(torch.poisson(torch.ones(users), generator=generator))
    return drawn if float(drawn.total_weight) > 0 else votes


def _around(middle: Head, heads: Sequence[Head]) -> list[Head]:
    """The heads moved so that their mean is `middle`, the fit to all votes.

    A bootstrap leaves out a third of the users, and a mean of bootstraps pays for it. Their spread is what is wanted.
    """
    mean = torch.stack([head.weights for head in heads]).mean(dim=0)
    return [head._replace(weights=head.weights - mean + middle.weights) for head in heads]


def _head_of(fit: LinearFit) -> Head:
    return Head(fit.weights.clone(), torch.zeros(()), fit.mean, 1.0 / fit.sd)


class _Trained(NamedTuple):
    head: Head
    epoch: int
    holdout_nll: float


def _train_member(
    peft_model: Any,
    name: str,
    start: _Start,
    held: Votes,
    examples: _Examples,
    config: RewardConfig,
    *,
    generator: torch.Generator,
    report: Callable[[int, float], None],
    check: Callable[[], None] | None,
) -> _Trained:
    """Train one member's adapter and head, and put back the epoch that held out users liked best (0 is the probe)."""
    head, manners = start.head, start.manners
    for parameter in manners.parameters():
        parameter.requires_grad_(True)
    parameters = use_adapter(peft_model, name, trainable=True)
    weights = head.weights.clone().requires_grad_()
    bias = head.bias.clone().requires_grad_()
    head = Head(weights, bias, head.mean, head.scale)
    optimiser = torch.optim.AdamW(
        [
            {"params": parameters, "lr": config.learning_rate, "weight_decay": config.weight_decay},
            {"params": [weights, bias], "lr": config.head_learning_rate / math.sqrt(len(weights)),
             "weight_decay": config.weight_decay},
            {"params": list(manners.parameters()), "lr": config.head_learning_rate, "weight_decay": 0.0},
        ],
        eps=1e-5,
    )  # fmt: skip

    asked = torch.cat([held.first, held.second, held.example]).unique()

    def snapshot(epoch: int) -> tuple[_Trained, list[Tensor]]:
        scores = torch.zeros(len(examples.pairs))
        if len(asked):
            found = active_features(
                peft_model,
                [examples.pairs[i] for i in asked.tolist()],
                examples.book,
                fixed=examples.fixed[asked],
                micro_batch=config.batch,
            )
            scores[asked] = head(found).detach()
        loss = _holdout_loss(manners, scores, held)
        report(epoch, loss)
        kept = Head(weights.detach().clone(), bias.detach().clone(), head.mean, head.scale)
        return _Trained(kept, epoch, loss), [p.detach().clone() for p in parameters]

    best, best_parameters = snapshot(0)
    for epoch in range(1, config.max_epochs + 1):
        for part in _vote_batches(start.votes, size=config.batch, generator=generator):
            if check:
                check()
            optimiser.zero_grad()
            loss = _batch_loss(peft_model, head, manners, part, examples, config, total=start.votes)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*parameters, weights, bias], 1.0)
            optimiser.step()
        now, now_parameters = snapshot(epoch)
        if now.holdout_nll < best.holdout_nll or not len(asked):
            best, best_parameters = now, now_parameters
        elif epoch - best.epoch >= 2:
            break
    with torch.no_grad():
        for parameter, value in zip(parameters, best_parameters, strict=True):
            parameter.copy_(value)
    use_adapter(peft_model, name, trainable=False)
    return best


def _batch_loss(
    peft_model: Any,
    head: Head,
    manners: Manners,
    votes: Votes,
    examples: _Examples,
    config: RewardConfig,
    *,
    total: Votes,
) -> Tensor:
    """Mean negative log likelihood of some votes, with the centring term and the share of the prior."""
    rows = torch.cat([votes.first, votes.second, votes.example]).unique()
    device = next(peft_model.parameters()).device
    batch = pad_rows([examples.pairs[i] for i in rows.tolist()], device=device)
    found = features(peft_model, batch, examples.book, fixed=examples.fixed[rows].to(device)).cpu()
    scores = torch.zeros(len(examples.pairs)).index_put((rows,), head(found))
    weight = votes.total_weight.clamp(min=1.0)
    prior = manners.prior() / total.total_weight.clamp(min=1.0)
    center = config.center * (scores[rows] ** 2).mean()
    return negative_log_likelihood(manners, scores, votes) / weight + prior + center


def _vote_batches(votes: Votes, *, size: int, generator: torch.Generator) -> list[Votes]:
    """Every vote of positive weight once, comparisons and thumbs mixed in their own proportion."""
    pairs = votes.pair_weight.nonzero()[:, 0]
    thumbs = votes.thumb_weight.nonzero()[:, 0]
    pairs = pairs[torch.randperm(len(pairs), generator=generator)]
    thumbs = thumbs[torch.randperm(len(thumbs), generator=generator)]
    count = max(1, math.ceil((len(pairs) + len(thumbs)) / size))
    return [votes.picked(pairs[i::count], thumbs[i::count]) for i in range(count)]


@torch.no_grad()
def _holdout_loss(manners: Manners, scores: Tensor, votes: Votes) -> float:
    """Negative log likelihood per unit of weight on users not trained on, as strangers: no leniency of their own."""
    if not float(votes.total_weight) > 0:
        return 0.0
    stranger = copy.deepcopy(manners)
    stranger.leniency.zero_()
    return float(negative_log_likelihood(stranger, scores, votes) / votes.total_weight)
