"""One cycle on simulated votes, without a server: how much better does the policy get, by the true taste?

    python -m tests.bench.learning.one_cycle --taste friendly-brief --seed 0 [--noise inf] [--picks 300 --thumbs 300]

Users with one hidden taste vote on replies of the bare base; reward model, PPO and gate see the votes alone. The
chosen candidate and the base then answer prompts that nobody voted on, and the taste itself compares them.
"""

import argparse
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import correlation
from typing import Any

import torch

from learner.assess import assess
from learner.config import LearnerConfig
from learner.dataset import Comparison, Dataset, Example, Outcome, PromptRow, Role, Thumb
from learner.likelihood import tabulate
from learner.rollout import generate
from learner.simulation.raters import make_raters, standardise
from learner.simulation.tastes import load_taste
from learner.simulation.world import World
from learner.train_policy import train_policy
from learner.train_reward import fit_reward
from server.modeling import Base, load_adapter, load_base, new_adapter, use_adapter
from server.scoring import RewardModel, make_code_book
from server.settings import Settings

SERVED: float = Settings.model_fields["temperature"].default
DEMO = Path(__file__).parents[3] / "server" / "demo_model"


def base_replies(
    base: Base, prompts: list[list[dict[str, str]]], seed: int, temperature: float
) -> list[Example]:
    ids = [base.renderer.render(p).token_ids for p in prompts]
    seeds = [seed * 1_000_003 + i for i in range(len(ids))]
    done = generate(base, ids, seeds=seeds, max_new_tokens=128, temperature=temperature)
    return [Example(tuple(p), r) for p, r in zip(done.prompts, done.responses, strict=True)]


def simulated_votes(base: Base, args: argparse.Namespace) -> Dataset:
    """Picks and thumbs, dealt to the users in turn; every third user, or so, is the judge's."""
    world, rng, taste = World(), random.Random(args.seed), load_taste(args.taste)
    prompts = [world.prompt(rng) for _ in range(args.picks + args.thumbs)]
    first, second = (
        base_replies(base, prompts, seed=10 * args.seed + k, temperature=args.temperature) for k in (1, 2)
    )
    text = base.renderer.decode

    def liked(rows: list[Example]) -> list[float]:
        return [taste(p, text(x.response_ids)) for p, x in zip(prompts, rows, strict=True)]

    scores = [liked(first), liked(second)]
    scale = standardise(list(zip(*scores, strict=True))[:64])
    raters = make_raters(args.users, noise=args.noise, seed=args.seed)
    roles = [Role.JUDGE if i % args.judge_every == 2 else Role.TRAIN for i in range(args.users)]
    comparisons, thumbs, rows = [], [], []
    for i in range(len(prompts)):
        who = i % args.users
        user, role, a, b = f"user{who:03d}", roles[who], scale(scores[0][i]), scale(scores[1][i])
        rows.append(PromptRow(first[i].prompt_ids, f"turn{i}", user, role))
        if i >= args.picks:
            thumbs.append(Thumb(first[i], raters[who].thumb(a) == "up", user, role, seq=i))
        elif (pick := raters[who].pick(a, b)) != "skip" and first[i] != second[i]:
            comparisons.append(Comparison(first[i], second[i], Outcome(pick), user, role, seq=i))
    return Dataset(tuple(comparisons), tuple(thumbs), tuple(rows))


def true_win_rate(
    base: Base, reward: RewardModel, folder: Path, args: argparse.Namespace
) -> dict[str, float]:
    """The taste itself on unseen prompts, one reply of each; and how far the reward model agrees on the base's."""
    world, rng, taste = World(), random.Random(f"unseen{args.seed}"), load_taste(args.taste)
    prompts = [world.prompt(rng) for _ in range(args.eval_prompts)]
    use_adapter(reward.peft_model, None, trainable=False)
    theirs = base_replies(base, prompts, seed=777, temperature=args.temperature)
    scored = reward.score([x.prompt_ids for x in theirs], [x.response_ids for x in theirs])
    use_adapter(load_adapter(reward.peft_model, "shown", folder), "shown", trainable=False)
    ours = base_replies(base, prompts, seed=778, temperature=args.temperature)
    text = base.renderer.decode
    mine, its = (
        [taste(p, text(x.response_ids)) for p, x in zip(prompts, rows, strict=True)]
        for rows in (ours, theirs)
    )
    gaps = [a - b for a, b in zip(mine, its, strict=True)]
    world_seen = [world.parse(p, text(a.response_ids)) for p, a in zip(prompts, ours, strict=True)]
    for p, a in list(zip(prompts, ours, strict=True))[: args.show]:
        print("  ", repr(p[-1]["content"]), "->", repr(text(a.response_ids)))
    return {
        "reward_correlation": correlation(its, scored.mean.tolist()),
        "win_rate": sum((g > 0) + 0.5 * (g == 0) for g in gaps) / len(gaps),
        "on_topic": sum(s.on_topic for s in world_seen) / len(gaps),
        "well_formed": sum(s.well_formed for s in world_seen) / len(gaps),
        "length": sum(len(a.response_ids) for a in ours) / len(gaps),
        "base_length": sum(len(b.response_ids) for b in theirs) / len(gaps),
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    config = LearnerConfig.profile("default")
    for item in args.set:
        group, _, rest = item.partition(".")
        key, _, value = rest.partition("=")
        config = replace(config, **{group: replace(getattr(config, group), **{key: json.loads(value)})})
    base = load_base(str(args.model))
    clock = time.monotonic()
    times: dict[str, float] = {}

    def lap(name: str) -> None:
        nonlocal clock
        times[name], clock = round(time.monotonic() - clock, 1), time.monotonic()

    votes = simulated_votes(base, args)
    lap("votes")
    model = new_adapter(base.model, "idle", rank=1, alpha=1, seed=0)
    use_adapter(model, None, trainable=False)
    replies = generate(
        base, [p.token_ids for p in votes.prompts[: config.reward.normalise_replies]],
        seeds=list(range(config.reward.normalise_replies)), max_new_tokens=128,
    )  # fmt: skip
    voted = tabulate(votes, thumb_weight=1.0, both_bad_weight=1.0).examples
    book = make_code_book(model, voted, seed=args.seed)
    fitted = fit_reward(
        model, votes.of(Role.TRAIN), config.reward, book=book, base_replies=replies.pairs, seed=args.seed
    )
    lap("reward")
    own = [p for p in votes.prompts if p.role is Role.TRAIN]
    history: list[str] = []

    def show(share: float, numbers: dict[str, float]) -> None:
        history.append(" ".join(f"{k} {v:.2f}" for k, v in numbers.items()))
        if args.verbose:
            print(f"   {share:.0%}", history[-1], flush=True)

    with tempfile.TemporaryDirectory() as workdir:
        candidates = train_policy(
            base, fitted.model, own, None, config.ppo, workdir=Path(workdir), seed=args.seed, progress=show
        )
        lap("ppo")
        found = assess(base, fitted.model, votes, candidates, None, config, seed=args.seed)
        lap("judge")
        truth = true_win_rate(base, fitted.model, found.chosen.path, args)
    return {
        "taste": args.taste, "seed": args.seed, "noise": args.noise, **truth, "passed": found.verdict.passed,
        "step": found.chosen.step, "reasons": found.verdict.reasons, "numbers": found.verdict.numbers,
        "reward": fitted.metrics, "table": found.table, "ppo": [candidates[-1].metrics], "seconds": times,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--taste", default="friendly-brief")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument(
        "--temperature", type=float, default=SERVED, help="of what is voted on and compared at the end"
    )
    parser.add_argument("--users", type=int, default=24)
    parser.add_argument("--judge-every", type=int, default=3)
    parser.add_argument("--picks", type=int, default=300)
    parser.add_argument("--thumbs", type=int, default=300)
    parser.add_argument("--eval-prompts", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", type=int, default=0)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--set", action="append", default=[], help="group.field=json, e.g. ppo.steps=20")
    parser.add_argument("--verbose", action="store_true")
    print(json.dumps(run(parser.parse_args()), indent=1, default=str))


if __name__ == "__main__":
    main()
