"""What a request's `model` may name, as OpenAI clients list it and look it up: segments, and for operators versions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from sqlmodel import Session

from server.api import envelope
from server.api.deps import AnyCaller, Parts, PartsDep
from server.api.schemas import PINNED
from server.errors import NotFound
from server.serving import Post
from server.store import adapters, cycles

router = APIRouter(tags=["chat"])
COUNTS = ("picks", "thumbs", "people")


@router.get("/v1/models")
async def models(caller: AnyCaller, parts: PartsDep) -> Response:
    """Segments, in a session its own; for operators also every version that can be named."""
    posts = [post for post in parts.serving.posts() if caller.segment in (None, post.wanted.segment)]
    rows = await segments_as_models(parts, posts)
    if caller.may("operator"):
        rows += await parts.store.read_async(
            lambda session: [version_as_model(row) for row in adapters.list_adapters(session)]
        )
    return envelope.answer({"object": "list", "data": rows, "next_cursor": None})


@router.get("/v1/models/{name}")
async def model(name: str, caller: AnyCaller, parts: PartsDep) -> Response:
    """One of them. A version that only operators may name is unknown to everybody else."""
    pinned = PINNED.fullmatch(name)
    if pinned is None:
        (row,) = await segments_as_models(parts, [await parts.serving.post(caller.lane(name))])
        return envelope.answer(row)
    if not caller.may("operator"):
        raise unknown_version(name)

    def read(session: Session) -> dict[str, Any]:
        adapter = adapters.get_adapter(session, int(pinned["version"]))
        if adapter.segment != pinned["segment"]:
            raise unknown_version(name)
        return version_as_model(adapter)

    return envelope.answer(await parts.store.read_async(read))


async def segments_as_models(parts: Parts, posts: list[Post]) -> list[dict[str, Any]]:
    """Each with who serves it since when, what that one learned from, and why no learner trains it."""
    known = await parts.store.read_async(lambda session: [about(session, post) for post in posts])
    return [
        {
            "id": post.wanted.segment,
            "object": "model",
            "created": int(post.since.timestamp()),
            "owned_by": "hone",
            "hone": {"revision": post.revision, "serving_since": post.since.isoformat(), **facts},
        }
        for post, facts in zip(posts, known, strict=True)
    ]


def about(session: Session, post: Post) -> dict[str, Any]:
    """What the record tells anybody about a segment: of all that its version was made from, only counts."""
    segment, version = post.wanted.segment, post.version
    manifest = adapters.get_adapter(session, version).manifest if version else {}
    return {
        "version": version,
        "again": adapters.served_before(session, segment, version),
        "learned_from": {name: manifest.get(name, 0) for name in COUNTS} if version else None,
        "why_not": cycles.training(session, segment).why_not,
    }


def version_as_model(row: adapters.Adapter) -> dict[str, Any]:
    return {
        "id": f"{row.segment}@{row.version}",
        "object": "model",
        "created": int(row.created_at.timestamp()),
        "owned_by": "hone",
    }


def unknown_version(name: str) -> NotFound:
    return NotFound(f"There is no model {name!r}.", code="unknown_version", param="model")
