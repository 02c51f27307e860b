"""A conversation becomes token ids here, and nowhere else.

Owns the chat template, truncation, the ids that end a reply and the hash that says which template an adapter was
trained under. Refuses to know engines, tensors and the record: it needs a tokenizer and the size of the context.

    messages -> merge what the template cannot say -> drop the oldest turns until it fits -> ids

What a user typed is data: the text of a special token inside a message is encoded as plain text.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from server.errors import Invalid
from server.spelling import Spelling, spell

log = logging.getLogger(__name__)

Message = Mapping[str, str]

PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}"
    "{% elif m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\n' }}"
    "{% else %}{{ 'Assistant: ' + m['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For a base model without a chat template; a reply then ends where the next `User:` would begin."""
PLAIN_STOPS = ("\nUser:",)
PROBE_TEXT = "Hone hashes a tokenizer by what it does: naïve café, 東京 12345,\n\t[x] <|y|> 🙂!"
REPLY_ROOM = 4
"""Without other word, a quarter of the context is kept for the reply."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that rendering needs."""

    chat_template: Any
    eos_token_id: int | None
    added_tokens_decoder: Mapping[int, Any]

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...

    def encode(self, text: str, **options: Any) -> Any: ...

    def decode(self, token_ids: Any, **options: Any) -> Any: ...

    def convert_ids_to_tokens(self, ids: int) -> Any: ...

    def get_vocab(self) -> Mapping[str, int]: ...


@dataclass(frozen=True, slots=True)
class Rendered:
    """Prompt ids that end where the reply begins; `truncated` when the oldest turns had to go."""

    token_ids: tuple[int, ...]
    truncated: bool


class Renderer:
    """Renders conversations for one tokenizer and one context size. Safe to share between threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        context: int,
        stop_ids: Iterable[int] = (),
        max_reply: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        # Leaving special tokens out is a switch inside a tokenizer: encoding has a copy of its own, one at a time,
        # so that neither another rendering thread nor one that decodes meets the switch half-way.
        self._encoder = copy.deepcopy(tokenizer)
        self._encoding = threading.Lock()
        self.context = context
        self.reply_room = max_reply or context // REPLY_ROOM
        own = tokenizer.chat_template
        own = own.get("default") if isinstance(own, dict) else own  # some checkpoints bring several
        self.template_is_default = not own
        self._template: str = own or PLAIN_TEMPLATE
        self._marks = _texts(tokenizer.added_tokens_decoder.values())
        self._bos = _forced_bos(tokenizer) if self.template_is_default else ()
        self.has_system_role = self._shows("system")
        if self.template_is_default:
            log.warning("the tokenizer has no chat template: a plain User/Assistant one is used")
        if not self.has_system_role:
            log.warning(
                "the chat template has no system role: system text goes before the first user message"
            )
        self.reply_prefix, ending = self._around_a_reply()
        self.stop_ids = frozenset(
            i for i in (*stop_ids, tokenizer.eos_token_id, ending) if isinstance(i, int) and i >= 0
        )
        added = tokenizer.added_tokens_decoder
        self._control_ids = {i for i, t in added.items() if getattr(t, "special", True) or i in self.stop_ids}
        self._marks = _texts(t for i, t in added.items() if i in self._control_ids)
        self._mark_pattern = re.compile("|".join(map(re.escape, self._marks)))
        self._words: dict[int, str] = {}
        """Texts of single ids: half of all that a stream of replies asks for."""
        self.stop_strings: tuple[str, ...] = PLAIN_STOPS if self.template_is_default else ()
        self.template_hash = self._hash()

    @classmethod
    def from_pretrained(cls, model: str, tokenizer: Tokenizer | None = None) -> Renderer:
        """The renderer of a checkpoint (a directory or a hub name), without loading its weights."""
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(model)
        found: Tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
        return cls(found, context=context_of(config), stop_ids=generation_stop_ids(model))

    def narrow(self, context: int) -> None:
        """Make do with a smaller context, where only the engine knows it. To be called before anything is rendered."""
        self.context = min(self.context, context)
        self.reply_room = min(self.reply_room, self.context // REPLY_ROOM)

    def render(self, messages: Sequence[Message], *, max_prompt_tokens: int | None = None) -> Rendered:
        """The ids of a conversation that is to be answered.

        Longer than `max_prompt_tokens`: the oldest turns are dropped, the system text stays. A prompt may always
        use half of the context, however long a reply was asked for. Raises Invalid `prompt_too_long` when
        even the last message does not fit, and Invalid when the template refuses the conversation.
        """
        wished = self.context - self.reply_room if max_prompt_tokens is None else max_prompt_tokens
        limit = min(max(wished, self.context // 2), self.context - 1)
        system, turns = _split_turns(messages)
        ids = self._encode_from(0, system, turns)
        if len(ids) <= limit:
            return Rendered(token_ids=tuple(ids), truncated=False)
        most = len(turns) - 1
        ids = self._encode_from(most, system, turns)
        if len(ids) > limit:
            raise Invalid(
                f"the last message does not fit: {len(ids)} tokens with its frame, {limit} are possible",
                code="prompt_too_long",
                param="messages",
            )
        least = 1
        while least < most:  # fewest turns dropped; rendering a long conversation once per turn would be slow
            middle = (least + most) // 2
            shorter = self._encode_from(middle, system, turns)
            if len(shorter) <= limit:
                most, ids = middle, shorter
            else:
                least = middle + 1
        return Rendered(token_ids=tuple(ids), truncated=True)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Ids of plain text, no special token recognised."""
        return tuple(self._encode_plain(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        if len(token_ids) == 1 and (word := self._words.get(token_ids[0])) is not None:
            return word
        text: str = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if len(token_ids) == 1:
            self._words[token_ids[0]] = text
        return text

    def spelling(self, token_id: int) -> Spelling:
        """One id by itself; a special one shows its name and stands for no bytes of a text."""
        text: str = self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        if token_id in self._control_ids:
            return Spelling(text, None)
        return spell(text, entry=str(self.tokenizer.convert_ids_to_tokens(token_id)))

    def _encode_from(self, dropped: int, system: str, turns: list[list[Message]]) -> list[int]:
        kept = [message for turn in turns[dropped:] for message in turn]
        return self._encode_conversation(self._with_system(system, kept))

    def _with_system(self, system: str, messages: list[Message]) -> list[Message]:
        if not system:
            return messages
        if self.has_system_role:
            return [{"role": "system", "content": system}, *messages]
        first = next((i for i, m in enumerate(messages) if m["role"] == "user"), None)
        if first is None:
            return [{"role": "user", "content": system}, *messages]
        joined = {"role": "user", "content": f"{system}\n\n{messages[first]['content']}"}
        return [*messages[:first], joined, *messages[first + 1 :]]

    def _encode_conversation(self, messages: Sequence[Message]) -> list[int]:
        text = self._text(messages)
        contents = [m["content"] for m in messages]
        if not any(mark in content for content in contents for mark in self._marks):
            return [*self._bos, *self._encode_template(text)]
        ids = self._encode_apart(messages, text)
        if ids is None:  # the template rewrites contents: take the sting out of the text itself
            dulled = [{**m, "content": _dull(m["content"], self._marks)} for m in messages]
            ids = self._encode_template(self._text(dulled))
        return [*self._bos, *ids]

    def _encode_apart(self, messages: Sequence[Message], text: str) -> list[int] | None:
        """Encode `text` with only the template's own special tokens recognised; None when they cannot be told apart."""
        stamps = _stamps(messages)
        stamped = self._text([{**m, "content": s} for m, s in zip(messages, stamps, strict=True)])
        spans: list[tuple[int, int]] = []
        built, rest = "", stamped
        for stamp, message in zip(stamps, messages, strict=True):
            before, found, rest = rest.partition(stamp)
            if not found:
                return None
            built += before
            content = message["content"]
            if not text.startswith(built + content):
                content = content.strip()  # most templates that touch a content only trim it
            spans.append((len(built), len(built) + len(content)))
            built += content
        if built + rest != text:
            return None
        ids: list[int] = []
        at = 0
        for start, end in self._marks_outside(text, spans):
            ids += self._encode_plain(text[at:start])
            ids += self._encode_template(text[start:end])
            at = end
        ids += self._encode_plain(text[at:])
        return ids

    def _marks_outside(self, text: str, spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Where the template's own special tokens stand, left to right, the longest first at each place."""
        at = 0
        for start, end in [*spans, (len(text), len(text))]:
            for found in self._mark_pattern.finditer(text, at, start):
                yield found.span()
            at = end

    def _encode_template(self, text: str) -> list[int]:
        return self._encode(text) if text else []

    def _encode_plain(self, text: str) -> list[int]:
        if not text:
            return []
        ids = self._encode(text, split_special_tokens=True)
        if self._control_ids.intersection(ids):  # a tokenizer that cannot switch its special tokens off
            ids = self._encode(_dull(text, self._marks))
        return ids

    def _encode(self, text: str, **options: Any) -> list[int]:
        with self._encoding:
            return [
                int(i) for i in self._encoder.encode(text, add_special_tokens=False, verbose=False, **options)
            ]

    def _text(self, messages: Sequence[Message], *, reply: bool = True) -> str:
        from jinja2 import TemplateError

        plain = [dict(m) for m in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(
                plain, chat_template=self._template, tokenize=False, add_generation_prompt=reply
            )
        except TemplateError as error:
            raise Invalid(
                f"the chat template refuses this conversation: {error}", param="messages"
            ) from error
        return text

    def _shows(self, role: str) -> bool:
        """Whether the template renders a message of `role` at all."""
        probe = [{"role": role, "content": "\ue000"}, {"role": "user", "content": "x"}]
        try:
            return "\ue000" in self._text(probe)
        except Invalid:
            return False

    def _around_a_reply(self) -> tuple[str, int | None]:
        """What a past reply stands between: the blank that the policy writes itself, and the id that ends it.

        `Bot:` asks for a reply and `Bot: Hello` is how it stands in the history: the policy's text then begins
        with a blank which is not part of the reply.
        """
        question = [{"role": "user", "content": "x"}]
        try:
            told = self._text([*question, {"role": "assistant", "content": "\ue000"}], reply=False)
            asked = self._text(question)
        except Invalid:
            return "", None
        before, found, after = told.partition("\ue000")
        if not found:
            return "", None
        prefix = before[len(asked) :] if before.startswith(asked) else ""
        mark = next((m for m in self._marks if after.lstrip().startswith(m)), None)
        ending = self._encode_template(mark) if mark else []
        return (prefix if prefix.isspace() else ""), (ending[0] if len(ending) == 1 else None)

    def _hash(self) -> str:
        """sha256 over what rendering does: template, vocabulary, special tokens, a probe text, endings."""
        identity = {
            "template": self._template,
            "vocabulary": hashlib.sha256(
                "\n".join(f"{i} {t}" for t, i in sorted(self.tokenizer.get_vocab().items())).encode()
            ).hexdigest(),
            "special": sorted((i, str(t)) for i, t in self.tokenizer.added_tokens_decoder.items()),
            "probe": self._encode_template(PROBE_TEXT),
            "stop": [sorted(self.stop_ids), self.stop_strings],
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def context_of(config: Any, *, most: int = 8192) -> int:
    """Tokens that prompt and reply share: what the positions allow, and `most` of it.

    GPT-Neo hides what lies outside of its local window by itself, counted from the end of the keys that it is given;
    so its window bounds the context. Other windows are the step loop's to hide. Where positions beyond the first
    training's turn all others differently, only those of the first training are used: one long reply would change what
    its neighbours' kept keys mean.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    sizes = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions")]
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) == "longrope":
        sizes += [
            rope.get("original_max_position_embeddings"),
            getattr(text, "original_max_position_embeddings", None),
        ]
    if getattr(text, "model_type", "") == "gpt_neo":
        sizes.append(getattr(text, "window_size", None))
    return min([most, *(size for size in sizes if isinstance(size, int) and size > 0)])


def generation_stop_ids(model: str) -> tuple[int, ...]:
    """The end ids that a checkpoint's generation config names; nothing else of that file is used."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        return ()
    return tuple(ends) if isinstance(ends, list | tuple) else (() if ends is None else (int(ends),))


def _split_turns(messages: Sequence[Message]) -> tuple[str, list[list[Message]]]:
    """The system text, and the rest as turns: a user message with the replies that follow it."""
    if not messages:
        raise Invalid("there is no message to answer", param="messages")
    named = [
        {"role": "system" if m["role"] == "developer" else m["role"], "content": m["content"]}
        for m in messages
    ]
    system = "\n\n".join(m["content"] for m in named if m["role"] == "system" and m["content"])
    turns: list[list[Message]] = []
    for message in named:
        if message["role"] == "system":
            continue
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return system, turns or [[{"role": "user", "content": ""}]]


def _texts(added: Iterable[Any]) -> list[str]:
    """Texts that the tokenizer would read as one id, longest first; blanks are no control tokens."""
    texts = {str(getattr(token, "content", token)) for token in added}
    return sorted((text for text in texts if text.strip()), key=lambda text: (-len(text), text))


def _forced_bos(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that the tokenizer puts before every text by itself; a chat template writes them on its own."""
    return tuple(int(i) for i in tokenizer.encode("", add_special_tokens=True))[:1]


def _stamps(messages: Sequence[Message]) -> list[str]:
    """One text for each message that no message contains."""
    everything = "".join(m["content"] for m in messages)
    fence = "\ue000"
    while fence in everything:
        fence += "\ue000"
    return [f"{fence}{i}\ue001" for i in range(len(messages))]


def _dull(text: str, marks: Sequence[str]) -> str:
    """`text` with a zero-width space inside each special token's text, which then no longer reads as one."""
    for mark in marks:
        text = text.replace(mark, mark[0] + "\u200b" + mark[1:])
    return text
