"""What PPO reaches when it is paid by the taste itself: how far these settings can go at all, without any votes.

The same PPO, prompts from the same source, as many as a cycle trains on; the reward is the taste of the decoded
reply, standardised over the base's replies, with no doubt about it. Compared like a version in `learns`, in process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch

from learner.config import LearnerConfig, PpoConfig
from learner.dataset import PromptRow
from learner.policy_state import Candidate
from learner.rollout import generate
from learner.simulation.figures import Outcome, summary
from learner.simulation.raters import Scale
from learner.simulation.scripts import Message, Script, WorldSource
from learner.simulation.seeds import stable_seed
from learner.simulation.tastes import Taste, load_taste
from learner.simulation.world import World
from learner.train_policy import train_policy
from server.modeling import Base, Ids, load_adapter, load_base, new_adapter, use_adapter
from server.scoring import Scores
from server.settings import DEMO_MODEL
from tests.prove.case import Case
from tests.prove.draws import KEPT, Draws, answer
from tests.prove.learns import NEVER_SEEN, TASTES
from tests.prove.unseen import DRAWS, PROMPTS, against_base, unseen

ASKED = 400
"""Prompts to train on: what two thirds of 24 users ask while they give 300 picks and 300 thumbs."""
CHOOSING = 128
"""Other prompts, on which the best of the candidates is chosen."""
NORMALISING = 256
"""Replies of the base over which the taste is brought to mean 0 and deviation 1, as a cycle does with its scores."""


@dataclass(frozen=True)
class Gold:
    """What a reward model is to PPO: the taste itself, which is never in doubt."""

    peft_model: Any
    base: Base
    liking: Taste
    scale: Scale
    conversations: dict[Ids, Sequence[Message]]
    names: tuple[str | None, ...] = ()

    def score(self, prompt_ids: Sequence[Ids], response_ids: Sequence[Ids]) -> Scores:
        decode = self.base.renderer.decode
        liked = [
            self.scale(self.liking(self.conversations[tuple(prompt)], decode(response)))
            for prompt, response in zip(prompt_ids, response_ids, strict=True)
        ]
        return Scores(torch.tensor(liked), torch.zeros(len(liked)))

    def score_prefixes(self, prompt_ids: Sequence[Ids], response_ids: Sequence[Ids]) -> Scores:
        """Of every beginning, as the reward model gives it to the critic: (B, 1 + R)."""
        width = max(1, *map(len, response_ids))
        found = torch.zeros(len(prompt_ids), 1 + width)
        for row, (prompt, response) in enumerate(zip(prompt_ids, response_ids, strict=True)):
            beginnings = [response[:cut] for cut in range(1 + len(response))]
            found[row] = self.score([prompt], [response]).mean
            found[row, : len(beginnings)] = self.score([prompt] * len(beginnings), beginnings).mean
        return Scores(found, torch.zeros(found.shape))


def gold(
    folder: Path,
    *,
    taste: str,
    seed: int = 0,
    prompts: int = PROMPTS,
    asked: int = ASKED,
    config: PpoConfig | None = None,
    model: Path = DEMO_MODEL,
    kept: Path = KEPT,
) -> dict[str, Any]:
    config = config or LearnerConfig.profile("default").ppo
    base, source = load_base(str(model)), WorldSource(World(), seed=seed, held_out=False)
    trained = [source.script(number) for number in range(asked)]
    choosing = [source.script(number) for number in range(asked, asked + CHOOSING)]
    reward = paid_by(base, load_taste(taste), trained, config, seed=seed)
    rows = [PromptRow(ids) for ids in reward.conversations]
    candidates = train_policy(base, reward, rows, None, config, workdir=folder, seed=seed)  # type: ignore[arg-type]
    chosen, liked = best_of(reward, candidates, choosing, seed=seed)
    table = compared(reward, taste, chosen, Draws(kept, model), prompts=prompts, seed=seed)
    return {
        "holds": True,  # whatever it reaches: a yardstick, not a claim
        "step": chosen.step,
        "nats": round(chosen.metrics["kl"], 2),
        "taste_by_step": liked,
        **against_base(table, 1),
    }


def paid_by(base: Base, liking: Taste, trained: Sequence[Script], config: PpoConfig, *, seed: int) -> Gold:
    """The reward, on the scale of the bare base's replies to what will be trained on."""
    model = new_adapter(base.model, "idle", rank=1, alpha=1, seed=0)
    use_adapter(model, None, trainable=False)
    conversations = {base.renderer.render(one.messages).token_ids: one.messages for one in trained}
    some = list(conversations)[:NORMALISING]
    replies = generate(
        base, some, seeds=[seed + i for i in range(len(some))], max_new_tokens=config.max_new_tokens
    )
    plain = Gold(model, base, liking, Scale(0.0, 1.0), conversations)
    liked = plain.score(replies.prompts, replies.responses).mean.tolist()
    return Gold(model, base, liking, Scale(fmean(liked), pstdev(liked)), conversations)


def best_of(
    reward: Gold, candidates: Sequence[Candidate], choosing: Sequence[Script], *, seed: int
) -> tuple[Candidate, dict[str, float]]:
    """The candidate whose replies the taste likes best, and what it thinks of each."""
    liked: dict[int, float] = {}
    for one in candidates:
        load_adapter(reward.peft_model, f"step{one.step}", one.path)
        seeds = [stable_seed("choose", seed, i) for i in range(len(choosing))]
        replies = answer(reward.base, [script.messages for script in choosing], seeds=seeds)
        liked[one.step] = fmean(
            reward.liking(script.messages, reply.text)
            for script, reply in zip(choosing, replies, strict=True)
        )
    best = max(candidates, key=lambda one: liked[one.step])
    return best, {str(step): round(score, 3) for step, score in liked.items()}


def compared(
    reward: Gold, taste: str, chosen: Candidate, draws: Draws, *, prompts: int, seed: int
) -> dict[str, Any]:
    """The evaluation's table, the chosen candidate as version 1, against replies of the base that nobody chose by."""
    world = World()
    scripts, parting = unseen(taste, draws, prompts=prompts)
    theirs = [replies[-1] for replies in draws.of(scripts, DRAWS + 1)]
    use_adapter(reward.peft_model, f"step{chosen.step}", trainable=False)
    seeds = [stable_seed("gold", seed, i) for i in range(len(scripts))]
    ours = answer(reward.base, [script.messages for script in scripts], seeds=seeds)
    rows = []
    for script, pair in zip(scripts, zip(theirs, ours, strict=True), strict=True):
        seen = [world.parse(script.messages, reply.text) for reply in pair]
        rows.append(
            [
                Outcome(
                    reward.liking(script.messages, reply.text), reply.tokens, its.on_topic, its.well_formed
                )
                for reply, its in zip(pair, seen, strict=True)
            ]
        )
    scores = [
        [reward.liking(script.messages, reply.text) for reply in replies]
        for script, replies in zip(scripts, parting, strict=True)
    ]
    return summary(taste, [0, 1], rows, scores)


def cases() -> list[Case]:
    return [Case(taste, 0, partial(gold, taste=taste)) for taste in (*TASTES, *NEVER_SEEN)]
