"""A crowd changes nothing for anybody: draws follow the policy, and swaps under load touch no reply."""

import itertools
import math
import random
from collections import Counter
from pathlib import Path

import torch

from server.decoding import Decoder, DecodeRequest, Emission, fit, generate_offline
from server.engine.base import FinishReason, Sampling
from server.modeling import hidden_states, logits_of
from tests.fakes import random_adapter, tiny_llama

DRAWS = 4000
MOST_KINDS = 5


def test_draws_in_a_crowd_follow_the_exact_distribution() -> None:
    """Two ids in a row, counted against their exact joint probability by a chi-square test."""
    torch.set_num_threads(1)
    fitted = fit(tiny_llama)
    prompt, sampling = (5, 9, 2, 77), {"temperature": 1.7, "top_k": MOST_KINDS, "top_p": 0.9}
    exact = joint(prompt, **sampling)
    decoder = Decoder(fitted.base, slots=32, bank=fitted.bank, trunk=fitted.trunk)
    fitted.base.renderer.stop_ids = frozenset()
    noise = random.Random(3)
    requests = [
        # Others come and go in between, longer and with other settings.
        DecodeRequest(i, prompt, Sampling(max_tokens=2, seed=i, **sampling))
        if i % 5
        else DecodeRequest(
            i, tuple(noise.choices(range(250), k=9)), Sampling(max_tokens=noise.randint(1, 9), seed=i)
        )
        for i in range(DRAWS)
    ]
    done = generate_offline(decoder, requests)
    seen = Counter(
        said.token_ids for request, said in zip(requests, done, strict=True) if request.prompt_ids == prompt
    )
    assert set(seen) <= set(exact)
    draws = sum(seen.values())
    statistic = sum((seen[pair] - draws * p) ** 2 / (draws * p) for pair, p in exact.items())
    freedom = len(exact) - 1
    # Wilson and Hilferty's cube root: so large a statistic comes by chance once in a million times.
    deviation = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert deviation < 4.75, (statistic, freedom)


def joint(
    prompt: tuple[int, ...], *, temperature: float, top_k: int, top_p: float
) -> dict[tuple[int, int], float]:
    """Exact probabilities of the first two ids."""
    base = tiny_llama()

    def following(ids: tuple[int, ...]) -> dict[int, float]:
        row = torch.tensor([ids])
        with torch.no_grad():
            states = hidden_states(base.model, row, torch.arange(len(ids))[None])
            chances = torch.softmax(logits_of(base.model, states[0, -1]).double() / temperature, dim=-1)
        best = chances.topk(top_k)
        kept, mass = {}, 0.0
        for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            if mass >= top_p * float(best.values.sum()):
                break
            kept[i], mass = p, mass + p
        return {i: p / mass for i, p in kept.items()}

    return {
        (first, second): p * q
        for first, p in following(prompt).items()
        for second, q in following((*prompt, first)).items()
    }


def test_versions_come_and_go_under_load_and_every_reply_is_its_versions_own(tmp_path: Path) -> None:
    """Sixty replies over twelve versions, three of them held at a time, cancelled ones among them."""
    torch.set_num_threads(1)
    fitted = fit(tiny_llama)
    fitted.base.renderer.stop_ids = frozenset()
    plain = tiny_llama()
    folders = {
        v: random_adapter(plain, tmp_path / str(v), seed=v, rank=1 + v % 5, strength=0.2)
        for v in range(1, 13)
    }
    decoder = Decoder(fitted.base, slots=8, bank=fitted.bank, trunk=fitted.trunk, prefix_bytes=1 << 16)
    dice = random.Random(1)
    said: dict[int, list[Emission]] = {}
    asked: dict[int, DecodeRequest] = {}
    numbers = itertools.count()

    def run(steps: int) -> None:
        for _ in range(steps):
            for emission in decoder.step():
                said[emission.id].append(emission)

    for version, folder in folders.items():
        fitted.bank.write(version, fitted.bank.prepare(folder))
        for gone in [v for v in fitted.bank.versions if 0 < v < version - 1 and not decoder.uses(v)]:
            fitted.bank.remove(gone)
            decoder.prefixes.forget(gone)
        for _ in range(5):
            number = next(numbers)
            prompt = tuple(dice.choices(range(250), k=dice.randint(1, 60)))
            held = [v for v in fitted.bank.versions if not v or v >= version - 1]
            sampling = Sampling(temperature=0, max_tokens=dice.randint(1, 40))
            asked[number] = DecodeRequest(number, prompt, sampling, dice.choice(held))
            said[number] = []
            decoder.admit(asked[number])
        run(dice.randint(10, 30))
        decoder.cancel(dice.choice(list(asked)))
    while not decoder.idle:
        run(1)

    alone = fit(tiny_llama)
    alone.base.renderer.stop_ids = frozenset()
    for version, folder in folders.items():
        alone.bank.write(version, alone.bank.prepare(folder))
    single = Decoder(alone.base, slots=1, bank=alone.bank, trunk=alone.trunk)
    ends = Counter(emissions[-1].finish_reason for emissions in said.values())
    assert ends[FinishReason.CANCELLED] > 0
    assert ends[FinishReason.LENGTH] > 40
    for number, request in asked.items():
        (expected,) = generate_offline(single, [request])
        ids = tuple(i for emission in said[number] for i in emission.token_ids)
        assert ids == expected.token_ids[: len(ids)], number
        if said[number][-1].finish_reason is not FinishReason.CANCELLED:
            assert len(ids) == request.sampling.max_tokens
    assert len(fitted.bank.versions) < 6
