"""Keys and values of finished replies, so that the next turn of a conversation need not read all of it again.

Found by adapter version and the ids themselves: keys of one version never serve another. What was used longest ago goes
first when the room is full.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from server.decoding.cache import Kept

LEAST = 16
"""Tokens below which reading them again is as cheap."""


class Prefix(NamedTuple):
    """Keys and values that begin as a prompt does; its first `length` positions are the prompt's."""

    length: int
    kept: Kept


class Prefixes:
    """At most `most_bytes` of them; 0 keeps nothing."""

    def __init__(self, most_bytes: int = 0) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._held: OrderedDict[tuple[int, tuple[int, ...]], Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def held_bytes(self) -> int:
        return self._bytes

    def find(self, version: int, ids: tuple[int, ...]) -> Prefix | None:
        """The longest beginning of `ids` that is held; at least one id is left to read."""
        best, length = None, LEAST - 1
        for key in self._held:
            if key[0] == version and (shared := _shared(key[1], ids, than=length)) > length:
                best, length = key, shared
        if best is None:
            return None
        self._held.move_to_end(best)
        return Prefix(length, self._held[best])

    def keep(self, version: int, ids: tuple[int, ...], kept: Kept) -> None:
        """Hold a copy of `kept`, the keys and values of `ids`; what it goes on from is held in it.

        Of what is larger than all the room there is, the beginning.
        """
        fits = len(ids) * self._most_bytes // max(_size(kept), 1)
        if fits < len(ids):
            ids = ids[:fits]
            kept = {layer: (keys[:, :fits], values[:, :fits]) for layer, (keys, values) in kept.items()}
        if len(ids) < LEAST:
            return
        for key in [key for key in self._held if key[0] == version and key[1] == ids[: len(key[1])]]:
            self._drop(key)
        self._held[version, ids] = {
            layer: (keys.clone(), values.clone()) for layer, (keys, values) in kept.items()
        }
        self._bytes += _size(kept)
        while self._bytes > self._most_bytes:
            self._drop(next(iter(self._held)))

    def forget(self, version: int | None = None) -> None:
        """Nothing of `version` is held any more; nothing at all without one."""
        for key in [key for key in self._held if version in (None, key[0])]:
            self._drop(key)

    def _drop(self, key: tuple[int, tuple[int, ...]]) -> None:
        self._bytes -= _size(self._held.pop(key))


def _size(kept: Kept) -> int:
    return sum(tensor.numel() * tensor.element_size() for pair in kept.values() for tensor in pair)


def _shared(held: Sequence[int], ids: Sequence[int], *, than: int) -> int:
    """How many ids both begin with, short of the last of `ids`; only told when it is more than `than`."""
    most = min(len(held), len(ids) - 1)
    if most <= than or held[: than + 1] != ids[: than + 1]:
        return 0
    low, high = than + 1, most  # held and ids agree on `low` ids; find how far they go on
    while low < high:
        middle = (low + high + 1) // 2
        if held[low:middle] == ids[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
