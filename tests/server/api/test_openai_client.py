"""The `openai` client works unchanged."""

from collections.abc import Iterator

import openai
import pytest

from tests.server.live import LiveServer

MESSAGES = [{"role": "user", "content": "tell me about rain"}]


@pytest.fixture
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.key("chat"), max_retries=0) as made:
        yield made


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default",
        messages=MESSAGES,
        seed=1,
        stop=["\n"],
        temperature=0.5,
        logprobs=True,
        top_logprobs=1,
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs.content[0].logprob < 0
    assert answer.usage.total_tokens > 0
    assert answer.system_fingerprint
    assert answer.choices[0].reply_id.startswith("rep_")


def test_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="default", messages=MESSAGES, seed=1, stream=True, stream_options={"include_usage": True}
    )
    said, usage, finish = "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            said += choice.delta.content or ""
            finish = choice.finish_reason or finish
    whole = client.chat.completions.create(model="default", messages=MESSAGES, seed=1)
    assert said == whole.choices[0].message.content
    assert finish == "stop"
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_hones_own_fields_go_through_extra_body(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=MESSAGES, extra_body={"candidates": 2, "conversation_id": None}
    )
    assert len(answer.choices) == 2
    assert answer.model_extra["hone"]["comparison_id"]
    assert answer.system_fingerprint is None


def test_several_choices(client: openai.OpenAI) -> None:
    assert len(client.chat.completions.create(model="default", messages=MESSAGES, n=3).choices) == 3


def test_the_list_of_models(client: openai.OpenAI) -> None:
    assert "default" in [model.id for model in client.models.list()]


def test_one_model_by_its_name(client: openai.OpenAI, live: LiveServer) -> None:
    (listed,) = [model for model in client.models.list() if model.id == "default"]
    found = client.models.retrieve("default")
    assert (found.id, found.object, found.created) == ("default", "model", listed.created)
    assert found.hone == listed.hone
    for name, code in (("gpt-9", "unknown_segment"), ("default@1", "unknown_version")):
        with pytest.raises(openai.NotFoundError) as unknown:
            client.models.retrieve(name)
        assert unknown.value.code == code


def test_errors_are_its_own_exception_types(client: openai.OpenAI, live: LiveServer) -> None:
    ask = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(model="gpt-9", messages=MESSAGES)
    assert unknown.value.code == "unknown_segment"
    with pytest.raises(openai.BadRequestError) as long:
        ask(model="default", messages=[{"role": "user", "content": "x" * 20_000}])
    assert long.value.code == "prompt_too_long"
    with pytest.raises(openai.UnprocessableEntityError) as hot:
        ask(model="default", messages=MESSAGES, temperature=3)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.PermissionDeniedError):
        ask(model="default@0", messages=MESSAGES)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="nonsense").chat.completions.create(model="default", messages=MESSAGES)
