"""The steps of a cycle: each reads what earlier ones left in the cycle's folder, and leaves its own part there.

Joins the rooms that do the work (`collect`, `train_reward`, `train_policy`, `judge`, `publish`) to files and rows.
Every step may be killed at any moment and run again: it goes on from its own files. No clock and no process id
gets into what is trained, so that a resumed cycle ends with the same bytes as an unbroken one.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learner import publish
from learner.collect import Scope
from learner.collect import collect as collect_votes
from learner.config import LearnerConfig
from learner.dataset import Dataset, PromptRow, Role
from learner.work import TooFewVotes, Unfit, Work
from server.store import adapters

if TYPE_CHECKING:
    from server.modeling import Base

log = logging.getLogger(__name__)


def collect(work: Work) -> dict[str, Any]:
    """Read the record once; from here on the cycle works on what it found."""
    base = work.base()
    scope = Scope(
        segment=work.cycle.segment,
        since=work.cycle.since,
        through=work.cycle.through,
        until=work.cycle.created_at,
        salt=work.cycle.config["salt"],
        template_hash=base.renderer.template_hash,
    )
    config = work.config.collect
    dataset = work.store.read(lambda session: collect_votes(session, scope=scope, config=config))
    if dataset.labels < config.min_labels:
        raise TooFewVotes(
            f"only {dataset.labels} votes can be trained on, {config.min_labels} are needed"
            + left_out(dataset.counts)
        )
    if not all(dataset.of(role).labels for role in Role):
        users = dataset.counts["users"]
        people = "1 person" if users == 1 else f"{users} people"
        raise TooFewVotes(f"the votes come from {people}, too few to keep some of them for judging")
    work.folder.save_dataset(dataset)
    inputs = {**asdict(scope), "until": scope.until.isoformat()}
    parent, anew = _parent(work, base)
    return {
        "inputs": inputs,
        "base": {"id": base.base_id, "hash": base.base_hash},
        "template_hash": base.renderer.template_hash,
        "parent": parent,
        "anew": anew,
        "metrics": dict(dataset.counts),
    }


LEFT_OUT = {
    "other_template": "given under another chat template",
    "kept_out": "kept out of training by their client",
    "quarantined": "quarantined",
    "skipped": "skipped",
    "void": "about a pair of equal replies",
    "pinned": "about a version that an operator had named",
    "unfinished": "about replies that were never finished",
    "erased": "about replies that were erased",
}
"""The names under which `learner.collect` counts votes that may not train, in words."""


def left_out(counts: Mapping[str, int]) -> str:
    """` (39 were given under another chat template)`; nothing when nothing was left out."""
    said = [
        f"{counts[why]} {'was' if counts[why] == 1 else 'were'} {words}"
        for why, words in LEFT_OUT.items()
        if counts.get(why)
    ]
    return f" ({', '.join(said)})" if said else ""


def _parent(work: Work, base: Base) -> tuple[int, str]:
    """The version to go on from and, when that is not the champion, why: only the very same base model under the
    very same chat template speaks the champion's language; else the bare base is where to begin."""
    if work.cycle.champion == 0:
        return 0, ""
    manifest = work.store.read(lambda s: adapters.get_adapter(s, work.cycle.champion)).manifest
    if manifest["base"]["hash"] != base.base_hash:
        foreign = "base model"
    elif manifest["template_hash"] != base.renderer.template_hash:
        foreign = "chat template"
    else:
        return work.cycle.champion, ""
    anew = f"It begins from the bare base: v{work.cycle.champion} belongs to another {foreign}."
    log.warning("%s", anew, extra={"cycle": work.cycle.id})
    return 0, anew


def reward(work: Work) -> dict[str, Any]:
    """Ask whether the votes say anything at all, and if so fit the reward model to the training users' votes."""
    from learner.features import base_features
    from learner.judge import signal
    from learner.likelihood import tabulate
    from learner.rollout import generate
    from learner.train_reward import fit_reward
    from server.modeling import use_adapter
    from server.scoring import feature_scale, make_code_book

    config, dataset = work.config, work.folder.load_dataset()
    with work.bare_model() as (base, model):
        table = tabulate(
            dataset,
            thumb_weight=config.reward.thumb_weight,
            both_bad_weight=config.reward.both_bad_weight,
        )
        micro_batch = config.ppo.micro_batch
        book = make_code_book(model, table.examples, seed=work.cycle.seed, micro_batch=micro_batch)
        features = base_features(model, table.examples, book, micro_batch=micro_batch)
        scale = feature_scale(features.shape[1], book)
        found = signal(features, table, config.gate, seed=work.cycle.seed, scale=scale)
        numbers = {f"signal_{name}": float(value) for name, value in found._asdict().items()}
        if found.z < config.gate.signal_z:
            return {"signal": found._asdict(), "metrics": numbers}
        use_adapter(model, None, trainable=False)
        asked = [row.token_ids for row in _rollable(dataset, config)[: config.reward.normalise_replies]]
        replies = generate(
            base,
            asked,
            seeds=[work.cycle.seed + i for i in range(len(asked))],
            max_new_tokens=config.ppo.max_new_tokens,
        )
        fitted = fit_reward(
            model,
            dataset.of(Role.TRAIN),
            config.reward,
            book=book,
            base_replies=replies.pairs,
            seed=work.cycle.seed,
            progress=work.watch,
            check=work.watch.raise_if_asked,
        )
        work.tenure.check()
        shutil.rmtree(work.folder.folder("reward"))
        fitted.model.save(work.folder.folder("reward"), base_id=base.base_id)
    return {"signal": found._asdict(), "metrics": {**fitted.metrics, **numbers}}


def ppo(work: Work) -> dict[str, Any]:
    """Move the champion's adapter towards the reward; candidates stay in the cycle's folder."""
    from learner.train_policy import train_policy
    from server.scoring import RewardModel

    if not _has_signal(work):
        return {"candidates": [], "metrics": {}}
    dataset = work.folder.load_dataset()
    with work.bare_model() as (base, model):
        candidates = train_policy(
            base,
            RewardModel.load(model, work.folder.folder("reward")),
            [row for row in _rollable(dataset, work.config) if row.role is Role.TRAIN],
            _champion(work),
            work.config.ppo,
            workdir=work.folder.folder("ppo"),
            seed=work.cycle.seed,
            progress=work.watch,
            check=work.watch.raise_if_asked,
            fence=work.tenure.check,
        )
    if not candidates:
        raise Unfit("PPO ended before the policy had moved: the cycle is too short for its warm-up")
    return {
        "candidates": [{"step": c.step, "metrics": c.metrics} for c in candidates],
        "metrics": candidates[-1].metrics,
    }


def judge(work: Work) -> dict[str, Any]:
    """Let the judge choose among the candidates and the gate decide; leave the chosen one ready to be published."""
    from learner.assess import assess
    from learner.judge import Signal, Verdict, check_signal
    from learner.policy_state import METRICS, Candidate
    from learner.probe import write_probe
    from learner.report import canary_samples, write_report
    from server.scoring import RewardModel

    if not _has_signal(work):
        found = Signal(**work.result("reward")["signal"])
        refusals: list[str] = []
        check_signal(found, work.config.gate, refusals, [])
        refused = Verdict(False, refusals, {"signal": found._asdict()})
        return {"verdict": refused.to_dict(), "candidate": False, "metrics": {}}
    candidates = [
        Candidate(row["step"], work.folder.folder("ppo") / f"step{row['step']:05d}", row["metrics"])
        for row in work.result("ppo")["candidates"]
    ]
    with work.bare_model() as (base, model):
        assessed = assess(
            base,
            RewardModel.load(model, work.folder.folder("reward")),
            work.folder.load_dataset(),
            candidates,
            _champion(work),
            work.config,
            seed=work.cycle.seed,
            progress=work.watch,
            check=work.watch.raise_if_asked,
        )
        chosen, verdict = assessed.chosen, assessed.verdict
        if anew := work.result("collect").get("anew"):
            verdict.reasons.append(anew)
        work.tenure.check()
        shutil.rmtree(work.folder.folder("candidate"))
        folder = work.folder.folder("candidate")
        shutil.copytree(chosen.path, folder, dirs_exist_ok=True)
        write_probe(base, model, folder, seed=work.cycle.seed, micro_batch=work.config.ppo.micro_batch)
        shutil.copy(work.folder.folder("ppo") / METRICS, folder / METRICS)
        write_report(
            folder,
            history=[json.loads(line) for line in (folder / METRICS).read_text().splitlines()],
            checkpoints=assessed.table,
            chosen_step=chosen.step,
            samples=canary_samples(
                base, model, before=_champion(work), after=folder, seed=work.cycle.seed,
                max_new_tokens=work.config.ppo.max_new_tokens,
            ),
        )  # fmt: skip
    return {
        "verdict": verdict.to_dict(),
        "candidate": True,
        "metrics": {**chosen.metrics, "step": chosen.step, **verdict.numbers.get("preference", {})},
    }


def _has_signal(work: Work) -> bool:
    z: float = work.result("reward")["signal"]["z"]
    return z >= work.config.gate.signal_z


def _champion(work: Work) -> Path | None:
    """The verified folder of the version to go on from; None for the bare base."""
    parent = work.result("collect")["parent"]
    if parent == 0:
        return None
    row = work.store.read(lambda session: adapters.get_adapter(session, parent))
    folder = work.artifacts.fetch(row.path)
    work.artifacts.verify(folder)
    return folder


def _rollable(dataset: Dataset, config: LearnerConfig) -> list[PromptRow]:
    """Prompts short enough to be answered within the configured lengths."""
    return [row for row in dataset.prompts if 0 < len(row.token_ids) <= config.ppo.max_prompt_tokens]


def register(work: Work) -> dict[str, Any]:
    """Give the candidate its number, publish it with its reward model, and enter it: refused ones too, as refused."""
    judged = work.result("judge")
    if work.cycle.dry_run or not judged["candidate"]:
        return {}
    collected = work.result("collect")
    numbers = publish.reserve(work.tenure, work.cycle.id)
    common = {
        "format": publish.FORMAT,
        "segment": work.cycle.segment,
        "cycle": work.cycle.id,
        "base": collected["base"],
        "template_hash": collected["template_hash"],
        "inputs": collected["inputs"],
        "config": work.config.to_dict(),
        "people": collected["metrics"].get("users", 0),
        "picks": collected["metrics"].get("picks", 0),
        "thumbs": collected["metrics"].get("thumbs", 0),
        # The cycle's own moment, not this one: a resumed cycle writes the same manifest.
        "created_at": work.cycle.created_at.isoformat(),
    }
    publish.publish(
        work.artifacts,
        tenure=work.tenure,
        source=work.folder.folder("reward"),
        path=publish.reward_path(numbers.reward_version),
        manifest={**common, "kind": "reward", "version": numbers.reward_version,
                  "metrics": work.result("reward")["metrics"]},
    )  # fmt: skip
    path = publish.adapter_path(work.cycle.segment, numbers.version)
    manifest, digest = publish.publish(
        work.artifacts,
        tenure=work.tenure,
        source=work.folder.folder("candidate"),
        path=path,
        manifest={**common, "kind": "adapter", "version": numbers.version, "parent": collected["parent"],
                  "reward_version": numbers.reward_version, "metrics": judged["metrics"],
                  "verdict": judged["verdict"]},
    )  # fmt: skip
    work.tenure.write(
        lambda session: adapters.register(
            session,
            version=numbers.version,
            segment=work.cycle.segment,
            parent=manifest["parent"],
            cycle_id=work.cycle.id,
            path=path,
            manifest=manifest,
            manifest_sha256=digest,
            passed=manifest["verdict"]["passed"],
            trained_through=work.cycle.through,
        )
    )
    # What an interrupted attempt had sealed stands, whatever was judged since: the folder is what will serve.
    return {**numbers._asdict(), "verdict": manifest["verdict"]}
