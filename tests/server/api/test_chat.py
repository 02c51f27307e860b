"""Talking over HTTP: one reply or two, streamed or whole, and what is left in the record."""

import json
import threading
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import httpx
import pytest

from server.engine.base import Delta, Prompt, Sampling
from tests.server.live import LiveServer, ask, events, wait_until


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    payloads = events(response)
    assert payloads[-1] == "[DONE]"
    return [json.loads(payload) for payload in payloads[:-1]]


def texts(stream: list[dict[str, Any]]) -> dict[str, str]:
    """Each reply's text, by its id."""
    found: dict[str, str] = {}
    for chunk in stream:
        for choice in chunk["choices"]:
            said = choice["delta"].get("content", "")
            found[choice["reply_id"]] = found.get(choice["reply_id"], "") + said
    return found


def stream(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    with client.stream("POST", "/v1/chat/completions", json=ask(**body, stream=True)) as response:
        assert response.status_code == 200, response.read()
        return chunks(response)


def turn(admin: httpx.Client, turn_id: str) -> dict[str, Any]:
    found: dict[str, Any] = admin.get(f"/v1/turns/{turn_id}").raise_for_status().json()
    return found


def test_a_whole_answer_has_openais_shape_and_hones_ids(admin: httpx.Client) -> None:
    response = admin.post("/v1/chat/completions", json=ask())
    answer = response.json()
    assert response.status_code == 200
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "default"
    assert answer["system_fingerprint"].startswith("fp_")
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert choice["reply_id"].startswith("rep_")
    assert answer["hone"].keys() >= {"turn_id", "conversation_id", "segment", "comparison_id", "truncated"}
    assert answer["hone"]["comparison_id"] is None
    assert response.headers["X-Hone-Turn-Id"] == answer["hone"]["turn_id"]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_what_is_kept_is_what_was_sent(admin: httpx.Client) -> None:
    answer = admin.post("/v1/chat/completions", json=ask("rain, snow and 東京 🙂", seed=5)).json()
    kept = turn(admin, answer["hone"]["turn_id"])
    (reply,) = kept["replies"]
    assert reply["id"] == answer["choices"][0]["reply_id"]
    assert reply["text"] == answer["choices"][0]["message"]["content"]
    assert reply["state"] == "done"
    assert reply["finish_reason"] == "stop"
    assert reply["version"] == 0
    assert reply["seed"] == 5
    assert reply["purpose"] == "single"
    assert len(reply["token_ids"]) == len(reply["logprobs"]) == answer["usage"]["completion_tokens"]
    assert len(kept["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    assert kept["template_hash"]


def test_a_seed_repeats_itself(admin: httpx.Client) -> None:
    said = [
        admin.post("/v1/chat/completions", json=ask(seed=seed)).json()["choices"][0]["message"]["content"]
        for seed in (1, 1, 2)
    ]
    assert said[0] == said[1] != said[2]


def test_a_stream_says_the_same_as_a_whole_answer(admin: httpx.Client) -> None:
    whole = admin.post("/v1/chat/completions", json=ask(seed=9)).json()
    parts = stream(admin, seed=9)
    assert list(texts(parts).values()) == [whole["choices"][0]["message"]["content"]]
    assert parts[0]["hone"]["turn_id"]
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all("hone" not in part for part in parts[1:])
    assert parts[-1]["choices"][0]["finish_reason"] == "stop"
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}


def test_usage_comes_last_when_it_is_asked_for(admin: httpx.Client) -> None:
    parts = stream(admin, stream_options={"include_usage": True})
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"]["completion_tokens"] > 0
    assert all(part["usage"] is None for part in parts[:-1])


def test_a_pair_streams_both_sides_under_one_comparison(admin: httpx.Client) -> None:
    parts = stream(admin, candidates=2)
    assert parts[0]["hone"]["comparison_id"].startswith("cmp_")
    said = texts(parts)
    assert len(said) == 2
    assert len(set(said.values())) == 2
    assert "system_fingerprint" not in json.dumps(parts)
    order = [choice["index"] for part in parts for choice in part["choices"]]
    assert {0, 1} == set(order)
    switches = sum(a != b for a, b in pairwise(order))
    assert switches > 2  # they interleave; one after the other would switch once or twice
    kept = turn(admin, parts[0]["hone"]["turn_id"])
    assert {reply["purpose"] for reply in kept["replies"]} == {"pair"}
    first, second = kept["replies"]
    assert first["sampling"] == second["sampling"]
    assert abs(first["seed"] - second["seed"]) == 1


def test_a_pair_at_temperature_zero_is_drawn_at_the_floor(admin: httpx.Client) -> None:
    answer = admin.post("/v1/chat/completions", json=ask(candidates=2, temperature=0)).json()
    assert len(answer["choices"]) == 2
    kept = turn(admin, answer["hone"]["turn_id"])
    assert {reply["sampling"]["temperature"] for reply in kept["replies"]} == {0.7}


@pytest.mark.parametrize(("given", "meant"), [(40, 40), (0, 0), (-1, 0), (None, 0)])
def test_top_k_reaches_the_engine_and_the_record(
    admin: httpx.Client, live: LiveServer, monkeypatch: pytest.MonkeyPatch, given: int | None, meant: int
) -> None:
    """It was dropped without a word; -1 is what clients of vLLM send for "off"."""
    seen: list[Sampling] = []
    generate = live.served.engine.generate

    def watched(prompt: Prompt, sampling: Sampling, *args: Any, **options: Any) -> AsyncIterator[Delta]:
        seen.append(sampling)
        return generate(prompt, sampling, *args, **options)

    monkeypatch.setattr(live.served.engine, "generate", watched)
    answer = admin.post("/v1/chat/completions", json=ask(top_k=given)).raise_for_status().json()
    assert [sampling.top_k for sampling in seen] == [meant]
    (reply,) = turn(admin, answer["hone"]["turn_id"])["replies"]
    assert reply["sampling"]["top_k"] == meant


def test_auto_never_pairs_at_temperature_zero(admin: httpx.Client) -> None:
    answers = [
        admin.post("/v1/chat/completions", json=ask(candidates="auto", temperature=0)).json()
        for _ in range(30)
    ]
    assert {len(answer["choices"]) for answer in answers} == {1}


def test_auto_pairs_now_and_then(admin: httpx.Client) -> None:
    """Share 0.2 of 60: fewer than 2 or more than 30 pairs happen once in ten thousand runs."""
    pairs = 0
    for _ in range(60):
        answer = admin.post("/v1/chat/completions", json=ask(candidates="auto")).json()
        pairs += answer["hone"]["comparison_id"] is not None
        assert (answer["hone"]["comparison_id"] is not None) == (len(answer["choices"]) == 2)
    assert 2 <= pairs <= 30


def test_equal_sides_are_thrown_again_and_the_new_seed_is_kept(admin: httpx.Client) -> None:
    """With two tokens' room both sides often begin alike; the third throw is what the record must name."""
    for seed in range(200):
        body = ask("x", candidates=2, seed=seed, max_tokens=2)
        answer = admin.post("/v1/chat/completions", json=body).json()
        kept = turn(admin, answer["hone"]["turn_id"])["replies"]
        seeds = sorted(reply["seed"] for reply in kept)
        if len(answer["choices"]) == 2:
            assert kept[0]["text"] != kept[1]["text"]
            assert answer["hone"]["comparison_id"]
            if seeds[1] == seed + 2:
                return
    raise AssertionError("no pair was thrown again in 200")


def test_a_pair_that_stays_equal_returns_one_reply(admin: httpx.Client) -> None:
    """One token's room: every reply to this begins with one of few letters, so equal threes turn up."""
    for seed in range(300):
        body = ask("x", candidates=2, seed=seed, max_tokens=1)
        answer = admin.post("/v1/chat/completions", json=body).json()
        if len(answer["choices"]) == 1:
            assert answer["hone"]["comparison_id"] is None
            # What was not shown is not counted either.
            assert answer["usage"]["completion_tokens"] == 1
            return
    raise AssertionError("no pair stayed equal in 300")


def test_a_streamed_pair_that_came_out_equal_is_withdrawn(admin: httpx.Client) -> None:
    for seed in range(300):
        parts = stream(admin, text="x", candidates=2, seed=seed, max_tokens=1)
        announced = parts[0]["hone"]["comparison_id"]
        said = list(texts(parts).values())
        if said[0] != said[1]:
            assert "hone" not in parts[-1]
            continue
        assert parts[-1]["hone"]["comparison_id"] is None
        pick = admin.post("/v1/feedback", json={"kind": "pick", "comparison_id": announced, "value": "first"})
        assert pick.status_code == 409
        return
    raise AssertionError("no streamed pair came out equal in 300")


def test_plain_choices_are_no_pair(admin: httpx.Client) -> None:
    answer = admin.post("/v1/chat/completions", json=ask(n=3)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["hone"]["comparison_id"] is None
    refused = admin.post("/v1/chat/completions", json=ask(n=2, candidates=2))
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "n"


def test_logprobs_are_those_of_the_record(admin: httpx.Client) -> None:
    answer = admin.post("/v1/chat/completions", json=ask(logprobs=True, top_logprobs=2)).json()
    content = answer["choices"][0]["logprobs"]["content"]
    kept = turn(admin, answer["hone"]["turn_id"])["replies"][0]
    assert [token["logprob"] for token in content] == pytest.approx(kept["logprobs"])
    assert all(len(token["top_logprobs"]) == 2 for token in content)
    streamed = stream(admin, logprobs=True)
    tokens = [t for part in streamed for t in (part["choices"][0].get("logprobs") or {}).get("content", [])]
    assert tokens


def test_tokens_of_half_a_character_say_their_bytes(admin: httpx.Client) -> None:
    """They said the three bytes of the replacement character, and the end stood there as an empty token."""
    body = ask("東京 🙂", logprobs=True, top_logprobs=1)
    choice = admin.post("/v1/chat/completions", json=body).json()["choices"][0]
    *tokens, end = choice["logprobs"]["content"]
    raw = bytes(byte for token in tokens for byte in token["bytes"])
    assert raw.decode() == choice["message"]["content"]
    assert "東".encode() in raw
    assert (end["token"], end["bytes"]) == ("<|end|>", None)
    for token in (*tokens, end):
        (top,) = token["top_logprobs"]
        assert (top["token"], top["bytes"]) == (token["token"], token["bytes"])


def test_any_seed_that_fits_64_bits_is_taken(admin: httpx.Client) -> None:
    for seed in (2**63 - 1, -(2**63)):
        answers = [
            admin.post("/v1/chat/completions", json=ask(seed=seed, candidates=2)).raise_for_status().json()
            for _ in range(2)
        ]
        assert answers[0]["choices"][0]["message"] == answers[1]["choices"][0]["message"]
    assert admin.post("/v1/chat/completions", json=ask(seed=2**63)).status_code == 422


def test_a_long_conversation_is_bounded_by_its_size_alone(admin: httpx.Client) -> None:
    talk = [{"role": role, "content": "so"} for _ in range(1500) for role in ("user", "assistant")]
    body = {"messages": [*talk, {"role": "user", "content": "and now?"}], "model": None}
    assert admin.post("/v1/chat/completions", json=body).status_code == 200


def test_stop_strings_end_a_reply_and_are_not_sent(admin: httpx.Client) -> None:
    answer = admin.post("/v1/chat/completions", json=ask("one two three", stop=" ")).json()
    assert " " not in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_max_tokens_cut_a_reply(admin: httpx.Client) -> None:
    answer = admin.post("/v1/chat/completions", json=ask(max_tokens=3)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3


def test_turns_of_a_conversation_stay_together(admin: httpx.Client) -> None:
    first = admin.post("/v1/chat/completions", json=ask(user="ada")).json()["hone"]["conversation_id"]
    again = admin.post("/v1/chat/completions", json=ask(user="ada", conversation_id=first)).json()
    assert again["hone"]["conversation_id"] == first


def test_a_conversation_of_nobody_or_of_somebody_else_is_unknown(
    admin: httpx.Client, live: LiveServer
) -> None:
    mine = admin.post("/v1/chat/completions", json=ask()).json()["hone"]["conversation_id"]
    with live.client(live.key("chat", client="other")) as other:
        for client, name in ((admin, "conv_nothing"), (other, mine)):
            refused = client.post("/v1/chat/completions", json=ask(conversation_id=name))
            assert refused.status_code == 404
            assert refused.json()["error"]["code"] == "unknown_conversation"


def test_an_unknown_segment_is_404(admin: httpx.Client) -> None:
    refused = admin.post("/v1/chat/completions", json=ask() | {"model": "gpt-9"})
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "unknown_segment"


def test_only_operators_name_versions(admin: httpx.Client, live: LiveServer) -> None:
    answer = admin.post("/v1/chat/completions", json=ask() | {"model": "default@0"}).json()
    kept = turn(admin, answer["hone"]["turn_id"])
    assert kept["replies"][0]["purpose"] == "pinned"
    assert admin.post("/v1/chat/completions", json=ask() | {"model": "default@77"}).status_code == 404
    with live.client(live.key("chat")) as user:
        assert user.post("/v1/chat/completions", json=ask() | {"model": "default@0"}).status_code == 403


def test_evaluation_turns_stay_out_of_training(admin: httpx.Client) -> None:
    for value, train in (("false", False), ("true", True)):
        answer = admin.post("/v1/chat/completions", json=ask(metadata={"hone_train": value})).json()
        assert turn(admin, answer["hone"]["turn_id"])["train"] is train


def test_a_message_that_cannot_fit_is_a_bad_request(admin: httpx.Client) -> None:
    refused = admin.post("/v1/chat/completions", json=ask("x" * 20_000))
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "prompt_too_long"


def test_old_turns_make_room_and_it_is_said(admin: httpx.Client) -> None:
    talk = [{"role": role, "content": str(i) * 900} for i in range(12) for role in ("user", "assistant")]
    body = {"messages": [*talk, {"role": "user", "content": "and now?"}]}
    assert admin.post("/v1/chat/completions", json=body).json()["hone"]["truncated"] is True


def test_text_parts_and_developer_messages_are_understood(admin: httpx.Client) -> None:
    parts = [{"type": "text", "text": "hello "}, {"type": "text", "text": "there"}]
    body = {"messages": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]}
    answer = admin.post("/v1/chat/completions", json=body).json()
    messages = turn(admin, answer["hone"]["turn_id"])["messages"]
    assert messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello there"},
    ]
    picture = {"type": "image_url", "image_url": {"url": "x"}}
    for part in (picture, {"type": "text"}, {"type": "text", "text": None}, {"type": "text", "text": 5}):
        body = {"messages": [{"role": "user", "content": [part]}]}
        assert admin.post("/v1/chat/completions", json=body).status_code == 422, part


def test_a_conversation_with_tools_is_refused_in_words(admin: httpx.Client) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    talk = [
        {"role": "user", "content": "what is the weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
    ]
    refused = admin.post("/v1/chat/completions", json={"messages": talk})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (422, "messages.2.role")
    assert "tools are not supported" in error["message"]


def test_null_is_the_same_as_left_out(admin: httpx.Client) -> None:
    """Typed clients write every field they know, and `null` for what nobody chose."""
    names = (
        "model",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "top_k",
        "max_tokens",
        "stop",
        "seed",
        "n",
        "logprobs",
    )
    more = ("user", "safety_identifier", "metadata", "candidates", "conversation_id")
    response = admin.post("/v1/chat/completions", json=ask(**dict.fromkeys((*names, *more))))
    assert response.status_code == 200, response.text
    assert len(response.json()["choices"]) == 1


def test_fields_that_hone_does_not_know_are_ignored(admin: httpx.Client) -> None:
    body = ask(frequency_penalty=0.5, tools=[], response_format={"type": "text"}, service_tier="auto")
    assert admin.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.5),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_k", -2),
        ("top_k", 2**31),
        ("top_k", 1.5),
        ("n", 5),
        ("candidates", 3),
        ("max_tokens", 0),
        ("messages", []),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("user", ""),
        ("seed", 2**64),
    ],
)
def test_a_field_out_of_bounds_is_422_and_named(admin: httpx.Client, field: str, value: object) -> None:
    refused = admin.post("/v1/chat/completions", json=ask() | {field: value})
    assert refused.status_code == 422
    assert refused.json()["error"]["param"].startswith(field)


def test_lone_surrogates_and_nul_are_refused(admin: httpx.Client) -> None:
    hello = '"messages": [{"role": "user", "content": "hello"}]'
    for text in ('"\\ud800"', '"\\u0000"'):
        said = '{"messages": [{"role": "user", "content": ' + text + "}]}"
        named = [f'{{{hello}, "{field}": {text}}}' for field in ("user", "conversation_id", "model", "stop")]
        for body in (said, *named):
            refused = admin.post(
                "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
            )
            assert refused.status_code in {400, 422}, body
            assert refused.json()["error"]["code"]


def test_many_talk_at_once_and_each_gets_its_own_answer(admin: httpx.Client) -> None:
    wrong: list[str] = []

    def talk(name: str) -> None:
        said = admin.post("/v1/chat/completions", json=ask(name)).json()["choices"][0]["message"]["content"]
        if name not in said:
            wrong.append(said)

    threads = [threading.Thread(target=talk, args=(f"word{i}",)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_unknown_turn_is_404(admin: httpx.Client) -> None:
    assert admin.get("/v1/turns/turn_nothing").json()["error"]["code"] == "unknown_turn"


def test_the_numbers_of_a_reply_are_counted(admin: httpx.Client) -> None:
    admin.post("/v1/chat/completions", json=ask())
    page = wait_until(lambda: admin.get("/metrics").text)
    assert 'hone_replies_total{purpose="single",state="done",version="0"}' in page
    assert 'route="/v1/chat/completions"' in page
