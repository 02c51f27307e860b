"""A live turn as OpenAI's answer: chunks of server-sent events, or one JSON object.

Strings are built by hand around the few parts that change, because this runs once per token of every reply.
It knows the wire's shape; it does not know engines, the store or requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from server.api import envelope
from server.engine.base import Delta
from server.spelling import Spelling
from server.turn import LiveReply, LiveTurn, Piece

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": waiting\n\n"


class Decoder(Protocol):
    """Says what a single token is, for log probabilities."""

    def spelling(self, token_id: int) -> Spelling: ...


class Chunks:
    """Writes one turn as `chat.completion.chunk` events."""

    def __init__(self, turn: LiveTurn, *, include_usage: bool, decoder: Decoder | None) -> None:
        self.turn = turn
        self.include_usage = include_usage
        self.decoder = decoder
        """Given when the request asked for log probabilities."""
        self._head = "data: " + envelope.to_json(head(turn, "chat.completion.chunk"))[:-1]

    def opening(self) -> bytes:
        """One chunk per reply, which names it before its first token; the very first says what turn this is."""
        parts = []
        for reply in self.turn.replies:
            extra = {"hone": hone(self.turn)} if reply.position == 0 else {}
            delta = {"role": "assistant", "content": ""}
            parts.append(self._event(reply, delta=delta, finish_reason=None, **extra))
        return b"".join(parts)

    def pieces(self, batch: Iterable[Piece]) -> bytes:
        """What has been added since the last time."""
        return b"".join(self.piece(piece) for piece in batch)

    def piece(self, piece: Piece) -> bytes:
        """What one step added to one reply; its end comes as a chunk of its own."""
        reply, delta = piece
        out = b""
        if delta.text or (self.decoder and delta.token_ids):
            out = self._event(
                reply, delta={"content": delta.text}, finish_reason=None, logprobs=self._logprobs(delta)
            )
        if delta.finish_reason is not None:
            withdrawn = reply.is_last and self.turn.was_pair and self.turn.comparison_id is None
            extra = {"hone": hone(self.turn)} if withdrawn else {}
            out += self._event(reply, delta={}, finish_reason=delta.finish_reason.value, **extra)
        return out

    def trouble(self, error: BaseException) -> bytes:
        """An error in mid-stream."""
        return f"data: {envelope.to_json(envelope.of(error))}\n\n".encode()

    def closing(self) -> bytes:
        """Usage, when it was asked for, and the end."""
        if not self.include_usage:
            return DONE
        return f'{self._head},"choices":[],"usage":{envelope.to_json(usage(self.turn))}}}\n\n'.encode() + DONE

    def _event(
        self,
        reply: LiveReply,
        *,
        delta: dict[str, str],
        finish_reason: str | None,
        logprobs: dict[str, Any] | None = None,
        **extra: Any,
    ) -> bytes:
        choice = {
            "index": reply.position,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
            "reply_id": reply.id,
        }
        tail = "".join(f',"{name}":{envelope.to_json(value)}' for name, value in extra.items())
        usage_field = ',"usage":null' if self.include_usage else ""
        return f'{self._head},"choices":[{envelope.to_json(choice)}]{usage_field}{tail}}}\n\n'.encode()

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        return logprobs([delta], self.decoder) if self.decoder else None


def completion(turn: LiveTurn, *, decoder: Decoder | None) -> dict[str, Any]:
    """The whole answer at once."""
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": reply.text, "refusal": None},
            "logprobs": logprobs(reply.deltas, decoder) if decoder else None,
            "finish_reason": reply.finish_reason,
            "reply_id": reply.id,
        }
        for i, reply in enumerate(turn.shown)
    ]
    return head(turn, "chat.completion") | {"choices": choices, "usage": usage(turn), "hone": hone(turn)}


def head(turn: LiveTurn, kind: str) -> dict[str, Any]:
    """What every chunk and the whole answer begin with. A pair carries no mark of its weights: votes are blind."""
    fields = {"id": f"chatcmpl-{turn.id}", "object": kind, "created": turn.created, "model": turn.model}
    return fields if turn.was_pair else fields | {"system_fingerprint": turn.stamp}


def hone(turn: LiveTurn) -> dict[str, Any]:
    """What only Hone says."""
    return {
        "turn_id": turn.id,
        "conversation_id": turn.conversation_id,
        "segment": turn.segment,
        "comparison_id": turn.comparison_id,
        "truncated": turn.truncated,
    }


def usage(turn: LiveTurn) -> dict[str, int]:
    """Tokens, counted as OpenAI does: the prompt once, all replies together that were sent."""
    written = sum(len(reply.token_ids) for reply in (turn.replies if turn.streams else turn.shown))
    return {
        "prompt_tokens": turn.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": turn.prompt_tokens + written,
    }


def logprobs(deltas: Iterable[Delta], decoder: Decoder | None) -> dict[str, Any]:
    """Log probabilities in OpenAI's shape, under the raw policy, whatever the sampling was."""
    assert decoder is not None
    content = []
    for delta in deltas:
        tops = delta.top_logprobs or ((),) * len(delta.token_ids)
        for token_id, logprob, top in zip(delta.token_ids, delta.logprobs, tops, strict=True):
            others = [_token(decoder.spelling(other.token_id), other.logprob) for other in top]
            content.append(_token(decoder.spelling(token_id), logprob) | {"top_logprobs": others})
    return {"content": content, "refusal": None}


def _token(token: Spelling, logprob: float) -> dict[str, Any]:
    # -9999.0 is how OpenAI writes "impossible": JSON has no minus infinity.
    raw = None if token.raw is None else list(token.raw)
    return {"token": token.text, "logprob": max(logprob, -9999.0), "bytes": raw}
