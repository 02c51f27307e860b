"""A Hone in memory, as far as a simulated user can see: chat, votes, segments, and the bad days of a network."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import httpx

from learner.simulation.rest import Hone
from learner.simulation.world import World

Respond = Callable[[list[dict[str, str]], int, int], str]
"""(messages, version, seed) -> reply."""
Trouble = Callable[[httpx.Request], httpx.Response | None]


def refusal(status: int, code: str, *, headers: dict[str, str] | None = None) -> httpx.Response:
    body = {"error": {"message": f"no: {code}", "type": "x", "code": code, "param": None}}
    return httpx.Response(status, json=body, headers=headers)


def world_reply(world: World) -> Respond:
    return lambda messages, version, seed: world.reply(messages, random.Random(f"{version}:{seed}"))


class FakeHone:
    """Answers like the API; remembers every request and every vote that it stored."""

    def __init__(self, respond: Respond, *, champion: int = 0, trouble: Trouble | None = None) -> None:
        self.respond = respond
        self.champion = champion
        self.trouble = trouble
        self.chats: list[dict[str, Any]] = []
        self.votes: dict[str, dict[str, Any]] = {}
        """By idempotency key: a repeated request stores nothing."""
        self.replies: dict[str, tuple[list[dict[str, str]], str]] = {}
        self.pairs: dict[str, tuple[str, str]] = {}

    def client(self, *, patience: float = 5.0, connections: int = 8) -> Hone:
        transport = httpx.MockTransport(self.answer)
        return Hone(
            "http://hone.test", "key", patience=patience, connections=connections, transport=transport
        )

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.trouble and (response := self.trouble(request)):
            return response
        if request.url.path == "/v1/segments":
            return httpx.Response(200, json={"data": [{"name": "default", "champion": self.champion}]})
        if request.method == "GET" and request.url.path == "/v1/feedback":
            return self.newest_votes(request.url.params)
        body = json.loads(request.content)
        if request.url.path == "/v1/feedback":
            if self.votes.setdefault(request.headers["Idempotency-Key"], body) != body:
                return refusal(409, "idempotency_conflict")
            return httpx.Response(201, json={"id": "fb_1", "kind": body["kind"], "status": "counted"})
        return self.chat(body)

    def newest_votes(self, asked: httpx.QueryParams) -> httpx.Response:
        rows = [
            {"seq": seq}
            for seq, vote in enumerate(self.votes.values(), 1)
            if vote["user"] == asked["user"] and asked["segment"] == "default"
        ]
        return httpx.Response(200, json={"data": rows[::-1][: int(asked["limit"])], "next_cursor": None})

    def chat(self, body: dict[str, Any]) -> httpx.Response:
        self.chats.append(body)
        number = len(self.chats)
        version = int(body["model"].partition("@")[2] or self.champion)
        count = body.get("n") or body["candidates"]
        texts = [self.respond(body["messages"], version, body["seed"] + side) for side in range(count)]
        comparison = f"cmp_{number}" if body["candidates"] == 2 and len(set(texts)) == 2 else None
        ids = [f"rep_{number}_{side}" for side in range(len(texts))]
        for reply_id, text in zip(ids, texts, strict=True):
            self.replies[reply_id] = (body["messages"], text)
        if comparison:
            self.pairs[comparison] = (ids[0], ids[1])
        return httpx.Response(
            200,
            json={
                "choices": [
                    {"index": side, "reply_id": ids[side], "message": {"role": "assistant", "content": text}}
                    for side, text in enumerate(texts)
                ],
                "usage": {"completion_tokens": sum(len(text.split()) for text in texts)},
                "hone": {
                    "conversation_id": body.get("conversation_id") or f"conv_{number}",
                    "comparison_id": comparison,
                },
            },
        )

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [vote for vote in self.votes.values() if vote["kind"] == kind]
