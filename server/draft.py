"""A turn before it is answered: what was asked, how it will be drawn, and the rows that stand before its first token.

    Ask + plan -> Draft (the prompt is rendered) -> rows in the record -> LiveTurn

Knows neither who answers nor when; nothing here waits for anybody.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlmodel import Session

from server import pairing
from server.engine.base import Prompt, Sampling
from server.prompts import Rendered, Renderer
from server.store import conversations
from server.turn import LiveReply, LiveTurn


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request: who asks, what, and how it wants to be answered."""

    client_id: str
    user: str | None
    segment: str
    messages: tuple[dict[str, str], ...]
    temperature: float
    max_tokens: int
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    keep_deltas: bool = False
    """Whether single steps are needed afterwards, for log probabilities."""
    seed: int | None = None
    n: int = 1
    candidates: pairing.Candidates = 1
    pinned: int | None = None
    conversation_id: str | None = None
    train: bool = True
    stream: bool = False

    @property
    def who(self) -> str:
        """Whose request it is where places are shared out: users take turns, not clients."""
        return f"{self.client_id}/{self.user or ''}"


@dataclass(frozen=True, slots=True)
class Draft:
    """A turn that is about to be opened."""

    ask: Ask
    plan: pairing.Plan
    rendered: Rendered
    sampling: Sampling
    template_hash: str

    @classmethod
    def of(cls, ask: Ask, plan: pairing.Plan, renderer: Renderer) -> Draft:
        """Renders the prompt, which is no work for an event loop. Raises Invalid."""
        rendered = renderer.render(ask.messages, max_prompt_tokens=renderer.context - ask.max_tokens)
        sampling = Sampling(
            temperature=plan.temperature,
            top_p=ask.top_p,
            top_k=ask.top_k,
            max_tokens=min(ask.max_tokens, renderer.context - len(rendered.token_ids)),
            stop=(*ask.stop, *renderer.stop_strings),
            seed=min(draw.seed for draw in plan.draws),
            top_logprobs=ask.top_logprobs,
        )
        return cls(ask, plan, rendered, sampling, renderer.template_hash)

    def write(self, session: Session) -> conversations.OpenedTurn:
        """The one short transaction before the first token."""
        ask, plan, sampling = self.ask, self.plan, self.sampling
        kept = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_tokens,
            "stop": list(sampling.stop),
        }
        return conversations.open_turn(
            session,
            client_id=ask.client_id,
            user=ask.user,
            segment=ask.segment,
            conversation_id=ask.conversation_id,
            messages=list(ask.messages),
            prompt_token_ids=list(self.rendered.token_ids),
            template_hash=self.template_hash,
            truncated=self.rendered.truncated,
            train=ask.train and ask.pinned is None,
            replies=[
                conversations.PlannedReply(
                    version=draw.version, seed=draw.seed, sampling=kept, purpose=draw.purpose.value
                )
                for draw in plan.draws
            ],
            pairing=plan.pairing,
            propensity=plan.propensity,
        )

    def live(self, opened: conversations.OpenedTurn) -> LiveTurn:
        """The turn as it will be answered, once its rows stand."""
        ask = self.ask
        return LiveTurn(
            id=opened.turn_id,
            conversation_id=opened.conversation_id,
            segment=ask.segment,
            model=ask.segment if ask.pinned is None else f"{ask.segment}@{ask.pinned}",
            comparison_id=opened.comparison_id,
            truncated=self.rendered.truncated,
            prompt=Prompt(self.rendered.token_ids),
            sampling=self.sampling,
            stamp="",
            created=int(time.time()),
            streams=ask.stream,
            keep_deltas=ask.keep_deltas,
            replies=[
                LiveReply(reply_id, draw.position, draw.version, draw.seed, draw.purpose)
                for reply_id, draw in zip(opened.reply_ids, self.plan.draws, strict=True)
            ],
            was_pair=self.plan.is_pair,
            who=ask.who,
        )
