"""Rows point where they should; teacher-forced numbers are the same alone and padded, whatever the pad id."""

import pytest
import torch

from server.modeling import (
    Base,
    Pair,
    mean_over,
    micro_batches,
    pad_rows,
    sequence_logprobs,
)
from server.modeling import (
    rows as rows_module,
)
from tests.fakes import FAMILIES, tiny_base, tiny_llama


def ragged() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 256, (count,), generator=generator).tolist())

    prompts = [ids(n) for n in (1, 9, 4, 30, 2)]
    # 256 ends a turn and is the pad id as well
    return [(prompt, (*ids(n), 256)) for prompt, n in zip(prompts, (3, 11, 0, 6, 20), strict=True)]


def plainly(base: Base, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    logprobs = logits.float().log_softmax(-1)
    return torch.stack([logprobs[len(prompt) + t - 1, i] for t, i in enumerate(response)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("micro_batch", [1, 3, 16])
def test_logprobs_equal_the_plain_forward_alone_and_padded(family: str, micro_batch: int) -> None:
    base = tiny_base(family)
    pairs = ragged()
    with torch.no_grad():
        found = sequence_logprobs(base.model, pairs, micro_batch=micro_batch)
    for (prompt, response), values in zip(pairs, found, strict=True):
        expected = plainly(base, prompt, response)
        assert values.dtype == torch.float32
        assert torch.allclose(values, expected, rtol=1e-5, atol=1e-5)


def test_the_head_in_chunks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama()
    pairs = ragged()
    whole = sequence_logprobs(base.model, pairs)
    monkeypatch.setattr(rows_module, "HEAD_ELEMENTS", 260 * 4)
    chunked = sequence_logprobs(base.model, pairs)
    for a, b in zip(whole, chunked, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_temperature_divides_the_logits() -> None:
    base = tiny_llama()
    (hot,) = sequence_logprobs(base.model, [((1, 2), (3,))], temperature=2.0)
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([[1, 2]])).logits[0, -1]
    assert float(hot) == pytest.approx(float((logits / 2).log_softmax(-1)[3]), abs=1e-5)


def test_an_empty_response_has_no_logprobs() -> None:
    base = tiny_llama()
    found = sequence_logprobs(base.model, [((1, 2), ()), ((3,), (4, 5))])
    assert [len(values) for values in found] == [0, 2]
    assert len(sequence_logprobs(base.model, [((1,), ())])[0]) == 0


def test_gradients_reach_the_trainable_adapter() -> None:
    from server.modeling import new_adapter, use_adapter

    model = new_adapter(tiny_llama().model, "policy", rank=2, alpha=4, seed=0)
    chosen = use_adapter(model, "policy", trainable=True)
    torch.cat(sequence_logprobs(model, [((1, 2), (3, 4))])).sum().backward()
    assert any(float(p.grad.abs().sum()) > 0 for p in chosen if p.grad is not None)


def test_the_mean_by_hand_ignores_what_is_no_response() -> None:
    hidden = torch.tensor([[[1.0], [3.0], [999.0]], [[5.0], [999.0], [999.0]], [[7.0], [7.0], [7.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    assert mean_over(hidden, mask).tolist() == [[2.0], [5.0], [0.0]]


def test_rows_point_at_the_tokens_and_at_the_states_before_them() -> None:
    rows = pad_rows([([7, 8, 9], [1, 2]), ([5], [3])])
    assert rows.token_ids.tolist() == [[7, 8, 9, 1, 2], [5, 3, 0, 0, 0]]
    assert rows.at.tolist() == [[3, 4], [1, 0]]
    assert rows.before.tolist() == [[2, 3], [0, 0]]
    assert rows.response_ids.tolist() == [[1, 2], [3, 0]]
    assert rows.is_response.tolist() == [[True, True], [True, False]]


def test_micro_batches_hold_every_row_once() -> None:
    pairs: list[Pair] = [((1,) * (1 + n * 7 % 20), (2,) * (n % 5)) for n in range(23)]
    groups = list(micro_batches(pairs, size=5))
    assert sorted(i for group in groups for i in group) == list(range(23))
    assert max(map(len, groups)) == 5
