"""Replies from the step loop are those of the model alone, whatever else runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from server import modeling
from server.decoding import (
    AdapterBank,
    Completed,
    Decoder,
    DecodeRequest,
    StockTrunk,
    generate_offline,
    score,
)
from server.decoding.cache import BUCKET
from server.engine.base import FinishReason, Sampling
from server.errors import Invalid, NotFound
from server.modeling import Base, sequence_logprobs
from tests.fakes import FAMILIES, random_adapter, tiny_base, tiny_llama

TINYTALK = Path(__file__).parents[4] / "shared" / "models" / "tinytalk-3m"
GREEDY = Sampling(temperature=0, max_tokens=24)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def prompts_for(base: Base, count: int = 9) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(5)
    most = min(base.model.config.vocab_size, 250)
    return [
        tuple(torch.randint(0, most, (3 + 7 * i % 29,), generator=generator).tolist()) for i in range(count)
    ]


def requests_for(base: Base, sampling: Sampling, *, version: int = 0) -> list[DecodeRequest]:
    return [DecodeRequest(i, p, sampling, version) for i, p in enumerate(prompts_for(base))]


def hugging_face_greedy(model: Any, base: Base, prompt: tuple[int, ...], *, most: int) -> tuple[int, ...]:
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=sorted(base.renderer.stop_ids),
        pad_token_id=0,
    )
    return tuple(out[0, len(prompt) :].tolist())


def alone(base: Base, request: DecodeRequest, *, bank: AdapterBank | None = None) -> Completed:
    return generate_offline(Decoder(base, slots=1, bank=bank), [request])[0]


@pytest.mark.parametrize("family", [*FAMILIES, "tinytalk"])
def test_greedy_equals_hugging_face_alone_and_in_a_crowd(family: str) -> None:
    if family == "tinytalk" and not TINYTALK.exists():
        pytest.skip("the third-party checkpoint is not here")
    base = modeling.load_base(str(TINYTALK)) if family == "tinytalk" else tiny_base(family)
    requests = requests_for(base, GREEDY)
    expected = [hugging_face_greedy(base.model, base, r.prompt_ids, most=24) for r in requests]
    crowd = generate_offline(Decoder(base, slots=4), requests)
    assert [c.token_ids for c in crowd] == expected
    assert [alone(base, r).token_ids for r in requests[:3]] == expected[:3]


@pytest.mark.parametrize("family", FAMILIES)
def test_reported_logprobs_are_those_of_the_raw_policy(family: str) -> None:
    base = tiny_base(family)
    requests = requests_for(base, Sampling(temperature=0.5, top_p=0.8, top_k=20, max_tokens=12, seed=3))
    done = generate_offline(Decoder(base, slots=5), requests)
    rescored = sequence_logprobs(
        base.model, [(r.prompt_ids, c.token_ids) for r, c in zip(requests, done, strict=True)]
    )
    for completed, values in zip(done, rescored, strict=True):
        assert torch.allclose(torch.tensor(completed.logprobs), values, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seeded_reply_is_the_same_alone_and_in_a_crowd(family: str) -> None:
    base = tiny_base(family)
    requests = requests_for(base, Sampling(temperature=1.3, top_p=0.95, max_tokens=20, seed=11))
    crowd = generate_offline(Decoder(base, slots=6), requests)
    assert [c.token_ids for c in crowd] == [alone(base, r).token_ids for r in requests]


def test_offline_generation_repeats_byte_for_byte() -> None:
    base = tiny_llama()
    requests = requests_for(base, Sampling(temperature=1.0, max_tokens=20, seed=4))
    first, second = (generate_offline(Decoder(base, slots=4), requests) for _ in range(2))
    assert first == second


def test_other_seeds_and_other_versions_give_other_replies(tmp_path: Path) -> None:
    base = tiny_llama()
    bank = AdapterBank(base)
    bank.write(1, bank.prepare(random_adapter(base, tmp_path / "a", seed=1)))
    prompt = prompts_for(base)[3]
    replies = {
        alone(
            base,
            DecodeRequest(0, prompt, Sampling(temperature=1, max_tokens=20, seed=seed), version),
            bank=bank,
        ).token_ids
        for seed in (1, 2)
        for version in (0, 1)
    }
    bank.close()
    assert len(replies) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_swap_leaves_running_replies_untouched(family: str, tmp_path: Path) -> None:
    """Version 1 runs; version 2 (of another rank) comes and takes new replies; 1 leaves; each equals itself alone."""
    base = tiny_base(family)
    bank = AdapterBank(base)
    folders = {v: random_adapter(base, tmp_path / str(v), seed=v, rank=2 * v) for v in (1, 2)}
    prompts = prompts_for(base)
    bank.write(1, bank.prepare(folders[1]))
    decoder = Decoder(base, slots=8, bank=bank)
    ids: dict[int, list[int]] = {i: [] for i in range(6)}

    def run(steps: int) -> None:
        for _ in range(steps):
            for emission in decoder.step():
                ids[emission.id] += emission.token_ids

    for i in range(3):
        decoder.admit(DecodeRequest(i, prompts[i], GREEDY, version=i % 2))
    run(7)
    bank.write(2, bank.prepare(folders[2]))
    for i in range(3, 6):
        decoder.admit(DecodeRequest(i, prompts[i], GREEDY, version=2))
    run(5)
    while decoder.uses(1):
        run(1)
    bank.remove(1)
    while not decoder.idle:
        run(1)
    bank.close()

    versions = [0, 1, 0, 2, 2, 2]
    peft_model = modeling.load_adapter(base.model, "v1", folders[1])
    peft_model = modeling.load_adapter(peft_model, "v2", folders[2])
    for i, version in enumerate(versions):
        modeling.use_adapter(peft_model, f"v{version}" if version else None, trainable=False)
        assert tuple(ids[i]) == hugging_face_greedy(base.model, base, prompts[i], most=24), (i, version)


def test_an_unknown_version_is_refused(tmp_path: Path) -> None:
    base = tiny_llama()
    bank = AdapterBank(base)
    decoder = Decoder(base, bank=bank)
    decoder.admit(DecodeRequest(0, (1, 2), GREEDY, version=7))
    with pytest.raises(NotFound):
        decoder.step()


def test_without_a_bank_the_active_adapter_speaks(tmp_path: Path) -> None:
    base = tiny_llama()
    requests = requests_for(base, GREEDY)
    plain = generate_offline(Decoder(base), requests)
    peft_model = modeling.load_adapter(
        base.model, "policy", random_adapter(tiny_llama(), tmp_path / "a", seed=1)
    )
    changed = generate_offline(Decoder(base), requests)
    modeling.use_adapter(peft_model, None, trainable=False)
    assert generate_offline(Decoder(base), requests) == plain
    assert all(a.token_ids != b.token_ids for a, b in zip(plain, changed, strict=True))


def test_a_cancelled_reply_frees_its_place() -> None:
    base = tiny_llama()
    decoder = Decoder(base, slots=1)
    prompts = prompts_for(base)
    for i in range(3):
        decoder.admit(DecodeRequest(i, prompts[i], GREEDY))
    decoder.step()
    assert (decoder.running, decoder.waiting) == (1, 2)
    decoder.cancel(0)
    decoder.cancel(2)
    emissions = decoder.step()
    ended = {e.id for e in emissions if e.finish_reason is FinishReason.CANCELLED}
    assert ended == {0, 2}
    assert {e.id for e in emissions if e.token_ids} == {1}


def test_a_reply_never_outgrows_the_context() -> None:
    base = tiny_llama(context=40)
    done = alone(base, DecodeRequest(0, tuple(range(30)), Sampling(temperature=1, max_tokens=500, seed=1)))
    assert len(done.token_ids) <= 10
    with pytest.raises(Invalid):
        Decoder(base).admit(DecodeRequest(1, tuple(range(40)), GREEDY))


def test_a_stop_string_ends_the_reply_and_is_not_in_it() -> None:
    base = tiny_llama()
    prompt = prompts_for(base)[3]
    whole = alone(base, DecodeRequest(0, prompt, Sampling(temperature=1, max_tokens=30, seed=9)))
    stop = whole.text[6:9]
    cut = alone(base, DecodeRequest(0, prompt, Sampling(temperature=1, max_tokens=30, seed=9, stop=(stop,))))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason is FinishReason.STOP
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert stop in base.renderer.decode(cut.token_ids)


def test_alternatives_are_sorted_and_hold_the_greedy_choice() -> None:
    base = tiny_llama()
    decoder = Decoder(base)
    decoder.admit(DecodeRequest(0, (1, 2, 3), Sampling(temperature=0, max_tokens=4, top_logprobs=3)))
    decoder.admit(DecodeRequest(1, (1, 2, 3), GREEDY))
    for emission in decoder.step():
        if emission.id == 1:
            assert emission.top_logprobs == ()
            continue
        ((first, *others),) = emission.top_logprobs
        assert (first.token_id, first.logprob) == (emission.token_ids[0], emission.logprobs[0])
        assert [t.logprob for t in others] == sorted((t.logprob for t in others), reverse=True)
        assert len(others) == 2


def test_progress_counts_to_the_end() -> None:
    base = tiny_llama()
    seen: list[tuple[int, int]] = []
    note: Callable[[int, int], None] = lambda done, of: seen.append((done, of))  # noqa: E731
    generate_offline(Decoder(base, slots=2), requests_for(base, GREEDY), on_progress=note)
    assert [done for done, _ in seen] == list(range(1, 10))


def test_one_row_that_is_not_finite_ends_alone(tmp_path: Path) -> None:
    base = tiny_llama()
    bank = AdapterBank(base)
    for version in (1, 2):
        bank.write(version, bank.prepare(random_adapter(base, tmp_path / str(version), seed=version)))
    expected = alone(base, DecodeRequest(1, (5, 9, 2), GREEDY, 1), bank=bank)
    decoder = Decoder(base, bank=bank)
    for i, version in ((1, 1), (2, 2)):
        decoder.admit(DecodeRequest(i, (5, 9, 2), GREEDY, version))
    said = decoder.step()
    for group in bank._groups:
        group.a[1] = float("inf")  # version 2 overflows in mid-reply
    while not decoder.idle:
        said += decoder.step()
    assert tuple(i for e in said if e.id == 1 for i in e.token_ids) == expected.token_ids
    last = [e for e in said if e.id == 2][-1]
    assert last.has_failed
    assert last.is_last
    assert last.finish_reason is None


def test_what_is_not_finite_goes_with_the_row_that_made_it(tmp_path: Path) -> None:
    """The next reply in its place is shorter, so that what it left behind would be within reach."""
    base = tiny_llama()
    base.renderer.stop_ids = frozenset()
    bank = AdapterBank(base)
    bank.write(1, bank.prepare(random_adapter(base, tmp_path / "1", seed=1)))
    long, short = (
        DecodeRequest(1, (5, 9, 2), GREEDY),
        DecodeRequest(3, (7, 4), Sampling(temperature=0, max_tokens=9)),
    )
    expected = [alone(base, request, bank=bank).token_ids for request in (long, short)]
    decoder = Decoder(base, slots=2, bank=bank)
    decoder.admit(long)
    decoder.admit(DecodeRequest(2, tuple(range(12)), GREEDY, 1))
    said = decoder.step()
    for group in bank._groups:
        group.a[0] = float("inf")
    decoder.admit(short)
    while not decoder.idle:
        said += decoder.step()
    assert [e.id for e in said if e.has_failed] == [2]
    assert [tuple(i for e in said if e.id == which for i in e.token_ids) for which in (1, 3)] == expected


def test_a_pair_reads_its_prompt_once_whoever_waits_beside_it() -> None:
    base = tiny_llama()
    trunk, read = StockTrunk(base), []
    states = trunk.states

    def counted(ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        read.append(ids.numel() if ids.shape[1] > 1 else 0)
        return states(ids, positions, cache)

    trunk.states = counted  # type: ignore[method-assign]
    decoder = Decoder(base, slots=8, trunk=trunk, prefill_tokens=24)
    for who in range(3):
        for side in range(2):
            prompt = (who, *range(19))
            decoder.admit(DecodeRequest(2 * who + side, prompt, GREEDY, who=f"user {who}"))
    while not decoder.idle:
        decoder.step()
    assert sum(read) == 3 * 20


def test_a_long_prompt_has_its_turn_however_many_short_ones_come() -> None:
    """There is room for two of the longer one, or for many short ones, and short ones never cease to wait."""
    base = tiny_llama()
    base.renderer.stop_ids = frozenset()
    decoder = Decoder(base, slots=8, cache_tokens=300, prefill_tokens=24)
    few = Sampling(temperature=0, max_tokens=3)
    for i, length in enumerate((40, 100)):
        decoder.admit(DecodeRequest(i, tuple(range(length)), few, who=f"reads {length}"))
    left, number = {0, 1}, 10
    for _ in range(300):
        while decoder.waiting < 12:
            prompt, short = (1, 2, number % 200), Sampling(max_tokens=10)
            decoder.admit(DecodeRequest(number, prompt, short, who="in a hurry"))
            number += 1
        left -= {e.id for e in decoder.step() if e.finish_reason}
    assert not left
    assert decoder.running > 2  # and short ones have theirs


def test_keys_never_take_more_than_what_was_allowed() -> None:
    """Many short replies and few long ones take turns; what room was made for the ones is not kept for the others."""
    base = tiny_llama()
    base.renderer.stop_ids = frozenset()
    allowed = 256
    decoder = Decoder(base, slots=16, cache_tokens=allowed)
    short = [DecodeRequest(i, (1, 2, 3), Sampling(temperature=0, max_tokens=10)) for i in range(12)]
    long = [DecodeRequest(20 + i, tuple(range(60)), Sampling(temperature=0, max_tokens=60)) for i in range(4)]
    again = [DecodeRequest(40 + i, (4, 5), Sampling(temperature=0, max_tokens=12)) for i in range(12)]
    most = 0
    for request in (*short, *long, *again):
        decoder.admit(request)
    while not decoder.idle:
        decoder.step()
        rows, length = decoder._rows.cache.room
        most = max(most, rows * length)
        assert rows * (length - BUCKET + 1) <= allowed  # lengths are rounded up
    assert most >= 12 * 16  # they did run together
    assert decoder.held_bytes == 0


def test_a_crowd_of_long_prompts_leaves_places_for_short_ones() -> None:
    base = tiny_llama()
    decoder = Decoder(base, slots=3, prefill_tokens=24)
    few = Sampling(temperature=0, max_tokens=3)
    long = [DecodeRequest(i, (i, *range(90)), few, who=f"reads {i}") for i in range(6)]
    asked = [*long, long[5], DecodeRequest(9, (7, 8), few, who="in a hurry")]
    asked[6] = DecodeRequest(6, long[5].prompt_ids, few, who="reads 5")  # the other side of a pair
    expected = {r.id: alone(base, r).token_ids for r in asked}
    for request in asked:
        decoder.admit(request)
    ended: list[int] = []
    said: dict[int, list[int]] = {r.id: [] for r in asked}
    while not decoder.idle:
        for emission in decoder.step():
            said[emission.id] += emission.token_ids
            ended += [emission.id] if emission.finish_reason else []
        assert decoder.running <= 3
    assert ended[0] == 9
    assert abs(ended.index(5) - ended.index(6)) == 1  # both sides read their prompt once
    assert {i: tuple(ids) for i, ids in said.items()} == expected


def test_long_prompts_are_cancelled_wherever_they_wait() -> None:
    decoder = Decoder(tiny_llama(), slots=3, prefill_tokens=24)
    for i in range(3):
        decoder.admit(DecodeRequest(i, (i, *range(90)), GREEDY))
    decoder.step()
    assert (decoder.running, decoder.waiting) == (1, 2)
    decoder.cancel(0, 2)
    assert {e.id for e in decoder.step() if e.finish_reason is FinishReason.CANCELLED} == {0, 2}
    decoder.cancel(1)
    decoder.step()
    assert decoder.idle
    assert not decoder.uses(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_many_items_score_as_each_alone_does(family: str) -> None:
    base = tiny_base(family)
    trunk, bank = StockTrunk(base), AdapterBank(base)
    items = [(p, p[::-1]) for p in prompts_for(base)] + [((1, 2), ())]
    whole = score(trunk, bank, 0, items)
    expected = sequence_logprobs(base.model, items)
    for found, theirs in zip(whole, expected, strict=True):
        assert found == pytest.approx(theirs.tolist(), abs=1e-4)
    in_pieces = score(trunk, bank, 0, items, piece=20)  # long ones in several, short ones together
    for found, before in zip(in_pieces, whole, strict=True):
        assert found == pytest.approx(before, abs=1e-4)
