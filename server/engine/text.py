"""Ids become text as they come: whole characters only, and nothing that may turn out to be a stop string.

Knows a way to decode ids and the stop strings; refuses to know tensors and requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"
PATIENCE = 16
"""Ids held back for the rest of a character; no character needs more, so by then the bytes are simply wrong."""


class TextStream:
    """The text of one reply. All that `push` and `finish` return, joined, is the reply."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, stops: Sequence[str] = (), prefix: str = ""
    ) -> None:
        self.stopped = False
        self._decode = decode
        self._stops = tuple(dict.fromkeys(stop for stop in stops if stop))
        self._prefix = prefix
        self._ids: list[int] = []
        self._start = self._read = 0
        self._seen = ""
        self._held = ""

    def push(self, token_id: int) -> str:
        """What can be said for certain now that `token_id` has come."""
        self._ids.append(token_id)
        # Decoding from a little before the new ids keeps the blank that a tokenizer drops at a text's beginning.
        text = self._decode(self._ids[self._start :])
        if text.endswith(BROKEN) and len(self._ids) - self._read < PATIENCE:
            return ""
        fresh = text[len(self._seen) :]
        self._start, self._read = self._read, len(self._ids)
        self._seen = self._decode(self._ids[self._start :])
        return self._release(fresh)

    def finish(self) -> str:
        """The rest: what was held for a stop string that never came; half a character is dropped."""
        fresh = self._decode(self._ids[self._start :])[len(self._seen) :].rstrip(BROKEN)
        self._start = self._read = len(self._ids)
        self._seen = ""
        said = self._release(fresh)
        if not self.stopped:
            said, self._held = said + self._held, ""
        return said

    def _release(self, fresh: str) -> str:
        if self.stopped:
            return ""
        if fresh and self._prefix:
            fresh, self._prefix = fresh.removeprefix(self._prefix), ""
        self._held += fresh
        places = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            said, self._held = self._held[: min(places)], ""
            return said
        keep = self._possible_stop()
        said, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return said

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = max((len(stop) for stop in self._stops), default=0)
        for length in range(min(longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
