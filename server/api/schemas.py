"""What callers may send, field by field: the only place where a limit on a field lives.

Bodies forbid unknown fields, except a chat request's, because OpenAI clients send many that Hone ignores.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from server.pairing import MAX_CHOICES, Candidates


def _keepable(text: str) -> str:
    """What every database and tokenizer can take: no NUL, which PostgreSQL cannot keep, and no half a character."""
    if "\x00" in text:
        raise ValueError("NUL characters cannot be kept")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is not a character") from None
    return text


def _one_text(content: Any) -> Any:
    """OpenAI's list of text parts as one string; an assistant's null as none."""
    if content is None:
        return ""
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise ValueError("only text parts are understood")
        if not all(isinstance(part.get("text"), str) for part in content):
            raise ValueError("a text part needs its text")
        return "".join(part["text"] for part in content)
    return content


def _spoken(role: Any) -> Any:
    """No policy here calls tools, so nothing can answer one."""
    if role in ("tool", "function"):
        raise ValueError(
            f"tools are not supported: leave messages of role {role} and the calls they answer out"
        )
    return role


def _several(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


def _off(top_k: Any) -> Any:
    """-1 is vLLM's word for "truncate nothing"; here it is 0."""
    return 0 if top_k == -1 else top_k


def _in_utc(moment: datetime) -> datetime:
    """The record keeps UTC, where the first and the last day of the calendar may not exist."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("this moment is out of range") from None


def _or(absent: Any) -> BeforeValidator:
    """Many clients write `null` for a field that they leave out."""
    return BeforeValidator(lambda value: absent if value is None else value)


Text = Annotated[str, AfterValidator(_keepable)]
Name = Annotated[Text, StringConstraints(min_length=1, max_length=200, strip_whitespace=True)]
SegmentName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Comment = Annotated[Text, StringConstraints(max_length=4000)]
Tags = Annotated[
    list[Annotated[Text, StringConstraints(min_length=1, max_length=64)]], Field(max_length=16), _or([])
]
Criterion = Annotated[Text, StringConstraints(max_length=64), _or("")]
Reason = Annotated[Text, StringConstraints(max_length=1000)]
Scope = Literal["chat", "feedback", "operator", "admin"]
Id = Annotated[Text, StringConstraints(min_length=1, max_length=80)]
Version = Annotated[int, Field(ge=0, lt=2**31)]
PINNED = re.compile(r"(?P<segment>[^@]+)@(?P<version>[0-9]{1,9})")
"""A `model` that names a version of a segment: `default@13`."""
Moment = Annotated[AwareDatetime, Field(strict=False), AfterValidator(_in_utc)]
"""JSON has no moments of its own: text in any body, also a strict one."""


class Body(BaseModel):
    """A request that says nothing but what is written down here, in JSON's own types: "5" and true are no numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


# --- chat --------------------------------------------------------------------------------------------------


class Message(BaseModel):
    """One message of the conversation; `developer` is OpenAI's newer word for `system`."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    role: Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_spoken)]
    content: Annotated[Text, BeforeValidator(_one_text)] = ""

    def plain(self) -> dict[str, str]:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    include_usage: bool = False


class ChatBody(BaseModel):
    """OpenAI's chat request, `top_k` as vLLM and others have it, and Hone's `candidates` and `conversation_id`."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    model: Annotated[Text, StringConstraints(min_length=1, max_length=100), _or("default")] = "default"
    messages: Annotated[list[Message], Field(min_length=1)]
    """The size of the body bounds their number: OpenAI names no other limit."""
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: (
        Annotated[
            int,
            BeforeValidator(_off),
            Field(
                ge=0, lt=2**31, description="Draw from so many of the likeliest tokens; 0 or -1: from all."
            ),
        ]
        | None
    ) = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: (
        Annotated[
            list[Annotated[Text, StringConstraints(min_length=1, max_length=200)]],
            BeforeValidator(_several),
            Field(max_length=4),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    user: Name | None = None
    safety_identifier: Name | None = None
    metadata: dict[str, Any] | None = None
    candidates: Annotated[Candidates, _or(1)] = 1
    conversation_id: Id | None = None


# --- feedback ----------------------------------------------------------------------------------------------


class FeedbackBody(Body):
    user: Name | None = None
    comment: Comment | None = None
    tags: Tags = []


class PickBody(FeedbackBody):
    kind: Literal["pick"]
    comparison_id: Id
    value: Literal["first", "second", "tie", "both_bad", "skip"]
    criterion: Criterion = ""
    seconds: Annotated[float, Field(ge=0, le=86_400)] | None = None


class ThumbBody(FeedbackBody):
    kind: Literal["thumb"]
    reply_id: Id
    value: Literal["up", "down"]


class EditBody(FeedbackBody):
    kind: Literal["edit"]
    reply_id: Id
    text: Annotated[Text, StringConstraints(min_length=1, max_length=100_000)]


class RatingBody(FeedbackBody):
    kind: Literal["rating"]
    reply_id: Id | None = None
    conversation_id: Id | None = None
    score: Annotated[int, Field(ge=1, le=5)]
    criterion: Criterion = ""


class SignalBody(FeedbackBody):
    kind: Literal["signal"]
    reply_id: Id
    name: Literal["copy", "regenerate", "dwell", "share", "abandon"]
    value: Annotated[float, Field(ge=0, le=1e9)] | None = None


AnyFeedback = Annotated[
    PickBody | ThumbBody | EditBody | RatingBody | SignalBody, Field(discriminator="kind")
]


# --- sessions and keys -------------------------------------------------------------------------------------


class SessionBody(Body):
    user: Name
    segment: SegmentName | None = None
    ttl_s: Annotated[int, Field(ge=10, le=86_400)] = 3600


class KeyBody(Body):
    client: Name
    name: Name
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=4)]
    expires_at: Moment | None = None


# --- operators ---------------------------------------------------------------------------------------------


class MoveBody(Body):
    """Why, and which champion the operator had in view: of two operators at once, the second is told."""

    reason: Reason = ""
    expecting: Version | None = None


class PromoteBody(MoveBody):
    version: Version


class RollbackBody(MoveBody):
    to: Version | None = None


class PairingBody(Body):
    share: Annotated[float, Field(ge=0, le=1)] = 0.2
    min_temperature: Annotated[float, Field(gt=0, le=2)] = 0.7


class SegmentBody(Body):
    """What is left out stays as it is."""

    rollout: Literal["manual", "gate"] | None = None
    pairing: PairingBody | None = None
    length: Literal["taste", "nuisance"] | None = None
    objectives: (
        Annotated[dict[Literal["votes"], Annotated[float, Field(gt=0, le=100)]], Field(min_length=1)] | None
    ) = None


class CycleBody(Body):
    segment: SegmentName = "default"
    dry_run: bool = False
