"""Teacher-forced numbers are the same alone and padded, whatever the pad id means elsewhere."""

import pytest
import torch

from server.decoding import forced as forced_module
from server.decoding import sequence_hidden, sequence_logprobs
from server.modeling import Base
from tests.fakes import FAMILIES, tiny_base, tiny_llama


def ragged(base: Base) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 256, (count,), generator=generator).tolist())

    prompts = [ids(n) for n in (1, 9, 4, 30, 2)]
    return prompts, [(*ids(n), 256) for n in (3, 11, 0, 6, 20)]  # 256 ends a turn and is the pad id as well


def plainly(base: Base, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    logprobs = logits.float().log_softmax(-1)
    return torch.stack([logprobs[len(prompt) + t - 1, i] for t, i in enumerate(response)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("micro_batch", [1, 3, 16])
def test_logprobs_equal_the_plain_forward_alone_and_padded(family: str, micro_batch: int) -> None:
    base = tiny_base(family)
    prompts, responses = ragged(base)
    with torch.no_grad():
        found = sequence_logprobs(base.model, prompts, responses, micro_batch=micro_batch)
    for prompt, response, values in zip(prompts, responses, found, strict=True):
        expected = plainly(base, prompt, response)
        assert values.dtype == torch.float32
        assert torch.allclose(values, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_surround_the_response(family: str) -> None:
    base = tiny_base(family)
    prompts, responses = ragged(base)
    with torch.no_grad():
        crowd = sequence_hidden(base.model, prompts, responses, micro_batch=16)
        for prompt, response, states in zip(prompts, responses, crowd, strict=True):
            (alone,) = sequence_hidden(base.model, [prompt], [response])
            assert states.shape == (len(response) + 1, 32)
            assert torch.allclose(states, alone, rtol=1e-5, atol=1e-5)


def test_the_head_in_chunks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama()
    prompts, responses = ragged(base)
    whole = sequence_logprobs(base.model, prompts, responses)
    monkeypatch.setattr(forced_module, "HEAD_ELEMENTS", 260 * 4)
    chunked = sequence_logprobs(base.model, prompts, responses)
    for a, b in zip(whole, chunked, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_temperature_divides_the_logits() -> None:
    base = tiny_llama()
    (hot,) = sequence_logprobs(base.model, [(1, 2)], [(3,)], temperature=2.0)
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([[1, 2]])).logits[0, -1]
    assert float(hot) == pytest.approx(float((logits / 2).log_softmax(-1)[3]), abs=1e-5)


def test_an_empty_response_has_no_logprobs_and_one_state() -> None:
    base = tiny_llama()
    found = sequence_logprobs(base.model, [(1, 2), (3,)], [(), (4, 5)])
    assert [len(values) for values in found] == [0, 2]
    assert sequence_hidden(base.model, [(1, 2)], [()])[0].shape == (1, 32)
    assert len(sequence_logprobs(base.model, [(1,)], [()])[0]) == 0


def test_gradients_reach_the_trainable_adapter() -> None:
    from server.modeling import new_adapter, use_adapter

    model = new_adapter(tiny_llama().model, "policy", rank=2, alpha=4, seed=0)
    chosen = use_adapter(model, "policy", trainable=True)
    torch.cat(sequence_logprobs(model, [(1, 2)], [(3, 4)])).sum().backward()
    assert any(float(p.grad.abs().sum()) > 0 for p in chosen if p.grad is not None)
