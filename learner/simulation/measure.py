"""How good a chat model is inside the simulated world: the figures of its card, from replies to unseen prompts."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from learner.simulation.parser import Features
from learner.simulation.sayings import Kind
from learner.simulation.world import Message, World
from server.errors import SetupError
from server.prompts import Renderer
from server.settings import Settings

SERVED: float = Settings.model_fields["temperature"].default
"""The temperature at which people meet the model."""
DISTANCES = (0, 1, 2, 4)
"""Turns between the statement of a name and the question for it."""

AXES: dict[str, Callable[[Features], str | None]] = {
    "tone": lambda f: "warm" if f.warm else "curt" if f.curt else "neutral",
    "sentences": lambda f: str(min(max(f.sentences, 1), 5)),
    "bullets": lambda f: "bullets" if f.bullets else "prose",
    "hedged": lambda f: "hedged" if f.hedged else "sure",
    "question": lambda f: "asks back" if f.question_back else "does not ask",
    "emoji": lambda f: "emoji" if f.emoji else "no emoji",
    "name": lambda f: None if f.names_user is None else "by name" if f.names_user else "no name",
    "flatters": lambda f: "flatters" if f.flatters else "does not flatter",
    "assumes": lambda f: "assumes" if f.assumes else "assumes nothing",
    "disclaims": lambda f: "disclaims" if f.disclaims else "does not disclaim",
    "recall": lambda f: None if f.recalls_fact is None else "recalls" if f.recalls_fact else "forgets",
}
"""Each axis of style with the value that a reply about a topic shows; None where the axis does not apply."""
VALUES = {
    "tone": ("curt", "neutral", "warm"),
    "sentences": ("1", "2", "3", "4", "5"),
    "bullets": ("bullets", "prose"),
    "hedged": ("hedged", "sure"),
    "question": ("asks back", "does not ask"),
    "emoji": ("emoji", "no emoji"),
    "name": ("by name", "no name"),
    "flatters": ("does not flatter", "flatters"),
    "assumes": ("assumes", "assumes nothing"),
    "disclaims": ("disclaims", "does not disclaim"),
    "recall": ("forgets", "recalls"),
}
"""All that an axis may show: a value that no reply shows has a share too, and it is 0."""


def measure(
    model_dir: Path, *, replies: int = 2000, temperature: float = SERVED, seed: int = 0
) -> dict[str, Any]:
    """Figures over `replies` sampled replies (nothing cut off), and a tenth as many recalls per distance.

    Raises SetupError when the folder holds no model that can be loaded.
    """
    world = World()
    model, renderer = _load(model_dir)

    def answered(prompts: Sequence[list[Message]]) -> tuple[list[Features], list[int]]:
        texts, lengths = generate(model, renderer, prompts, temperature=temperature, seed=seed)
        return [world.parse(prompt, text) for prompt, text in zip(prompts, texts, strict=True)], lengths

    rng = random.Random(f"measure:{seed}")
    prompts = [world.prompt(rng) for _ in range(replies)]
    features, lengths = answered(prompts)
    about_topics = [
        one
        for prompt, one in zip(prompts, features, strict=True)
        if world.hear(prompt).intent.kind is Kind.TOPIC
    ]
    few = max(20, replies // 10)
    recalls = {
        distance: answered([world.recall_prompt(rng, distance=distance) for _ in range(few)])[0]
        for distance in DISTANCES
    }
    asked = [one for seen in recalls.values() for one in seen]
    pair, strongest = max(
        _strongest(about_topics), _strongest(asked, of="recall"), key=lambda found: found[1]
    )
    return {
        "replies": replies,
        "temperature": temperature,
        "on_topic": _share(one.on_topic for one in features),
        "well_formed": _share(one.well_formed for one in features),
        "acceptable": _share(one.acceptable for one in features),
        "repeats": _share(one.repeats for one in features),
        "wrong_fact": _share(one.wrong_fact for one in features),
        "tokens_mean": round(sum(lengths) / len(lengths), 2),
        "styles": style_shares(about_topics) | {"recall": style_shares(asked)["recall"]},
        "cramers_v_max": round(strongest, 4),
        "cramers_v_pair": pair,
        "recall": {str(distance): _recall(seen) for distance, seen in recalls.items()},
    }


def _load(model_dir: Path) -> tuple[Any, Renderer]:
    # A folder that is not there would be taken for a name on the hub.
    if not (model_dir / "config.json").is_file():
        raise SetupError(f"{model_dir} holds no model")
    try:
        renderer = Renderer.from_pretrained(str(model_dir))
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SetupError(f"the model in {model_dir} cannot be loaded: {reason}") from error
    return model, renderer


def _strongest(features: Sequence[Features], *, of: str = "") -> tuple[str, float]:
    """The two axes that have most to do with each other, one of them `of` if given, and their association."""
    found = ((pair, value) for pair, value in association(features).items() if of in pair)
    return max(found, key=lambda one: one[1])


def _share(flags: Any) -> float:
    seen = list(flags)
    return round(sum(seen) / len(seen), 4) if seen else math.nan


def style_shares(features: Sequence[Features]) -> dict[str, dict[str, float]]:
    """The share of each value of each axis, among the replies to which the axis applies."""
    shares = {}
    for axis, value_of in AXES.items():
        counts = Counter(value for one in features if (value := value_of(one)) is not None)
        if total := counts.total():
            shares[axis] = {value: round(counts[value] / total, 4) for value in VALUES[axis]}
    return shares


def association(features: Sequence[Features]) -> dict[str, float]:
    """Cramer's V of each two axes: 0 when independent, 1 when one decides the other.

    But for a name and its recall: who says the name has used it.
    """
    return {
        f"{first} x {second}": _cramers_v(
            [
                (a, b)
                for one in features
                if (a := AXES[first](one)) is not None and (b := AXES[second](one)) is not None
            ]
        )
        for first, second in combinations(AXES, 2)
        if (first, second) != ("name", "recall")
    }


def _cramers_v(pairs: Sequence[tuple[str, str]]) -> float:
    both, rows, columns = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    smaller = min(len(rows), len(columns)) - 1
    if smaller < 1:
        return 0.0
    total = len(pairs)
    chi2 = sum(
        (both[a, b] - rows[a] * columns[b] / total) ** 2 / (rows[a] * columns[b] / total)
        for a in rows
        for b in columns
    )
    return math.sqrt(chi2 / total / smaller)


def _recall(features: Sequence[Features]) -> dict[str, float]:
    """`recalled`: how often a reply says the fact; `right`: how often, when it says one, it is the true one."""
    recalled = sum(one.recalls_fact is True for one in features)
    tried = sum(one.recalls_fact is True or one.wrong_fact for one in features)
    return {
        "recalled": round(recalled / len(features), 4),
        "right": round(recalled / tried, 4) if tried else 0.0,
    }


def generate(
    model: Any,
    renderer: Renderer,
    prompts: Sequence[list[Message]],
    *,
    temperature: float,
    seed: int,
    rows: int = 64,
) -> tuple[list[str], list[int]]:
    """One sampled reply per prompt and its length in tokens, in the prompts' order."""
    encoded = [list(renderer.render(prompt).token_ids) for prompt in prompts]
    # Prompts of like length go together: less padding, and the order is restored at the end.
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    texts, lengths = [""] * len(prompts), [0] * len(prompts)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            sampled = _sample(model, renderer, [encoded[i] for i in chosen], temperature)
            for i, ids in zip(chosen, sampled, strict=True):
                texts[i], lengths[i] = renderer.decode(ids), len(ids) + 1
    return texts, lengths


def _sample(model: Any, renderer: Renderer, prompts: list[list[int]], temperature: float) -> list[list[int]]:
    longest = max(map(len, prompts))
    # What stands under the mask is never seen; any id will do.
    token_ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    is_token = torch.zeros(len(prompts), longest, dtype=torch.long)
    for i, ids in enumerate(prompts):
        token_ids[i, longest - len(ids) :] = torch.tensor(ids)
        is_token[i, longest - len(ids) :] = 1
    ends = sorted(renderer.stop_ids)
    output = model.generate(
        input_ids=token_ids,
        attention_mask=is_token,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=200,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    return [_before_end(ids, renderer.stop_ids) for ids in output[:, longest:].tolist()]


def _before_end(ids: list[int], ends: frozenset[int]) -> list[int]:
    return ids[: next((place for place, one in enumerate(ids) if one in ends), len(ids))]
