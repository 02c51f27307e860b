"""A version's weights added to the base's while it answers alone, so that it costs no more than the base does.

    alone for a while -> its factors copied -> [a thread] W + BA in their fast form -> scored against W and BA -> in use

In float32 only: bfloat16 would round small deltas away. The base's own weights stay beside them, so that a row of any
other version never waits; that takes the linear layers' memory once more, and only where there is plenty. Refuses to
know requests and events: whoever runs the steps calls `between_steps`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from server.decoding.bank import AdapterBank
from server.decoding.cache import SlotCache
from server.decoding.fused import FusedTrunk, Merged
from server.decoding.room import available_bytes
from server.decoding.trunk import Trunk

log = logging.getLogger(__name__)

AFTER_SECONDS = 2.0
"""For so long only one version has answered before it is merged: between two promotions there is much more."""
SHARE = 0.25
"""Of the memory that is free, merged weights may take so much."""
TOLERANCE = 1e-3
"""Nats by which a merged version may score anything differently."""
PROBE = 24


class Merger:
    """Merges into one trunk, one version at a time. All calls come from the thread that runs the steps."""

    def __init__(
        self,
        trunk: Trunk,
        bank: AdapterBank,
        *,
        after: float = AFTER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trunk = trunk if isinstance(trunk, FusedTrunk) and trunk.base.dtype == torch.float32 else None
        self._bank, self._after, self._clock = bank, after, clock
        self._only: int | None = None
        self._since = clock()
        self._refused: set[int] = set()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="hone-merge")
        self._work: tuple[int, Future[Merged]] | None = None

    def between_steps(self) -> None:
        """Begin a merge that is due, take over one that is done, let go of one whose version has gone."""
        trunk = self._trunk
        if trunk is None:
            return
        self._refused &= set(self._bank.versions)
        if trunk.merged and trunk.merged.version not in self._bank.versions:
            trunk.merged = None
        if self._work and self._work[1].done():
            done, self._work = self._work, None
            self._take_over(trunk, *done)
        only = self._bank.only
        if only != self._only:
            self._only, self._since = only, self._clock()
        if only and only in self._bank.versions and self._is_due(trunk, only):
            trunk.merged = None  # of another version: two would take the memory twice
            factors = self._bank.factors(only)
            self._work = only, self._worker.submit(trunk.merge, only, factors)

    def close(self) -> None:
        """What is being merged is not waited for."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _is_due(self, trunk: FusedTrunk, version: int) -> bool:
        if self._work or version in self._refused or self._clock() - self._since < self._after:
            return False
        if trunk.merged and trunk.merged.version == version:
            return False
        if trunk.merged is None and trunk.linear_bytes > SHARE * available_bytes():
            self._refused.add(version)
            log.info("version %d is not merged: there is too little free memory", version)
            return False
        return True

    def _take_over(self, trunk: FusedTrunk, version: int, work: Future[Merged]) -> None:
        if version not in self._bank.versions:
            return
        self._refused.add(version)  # until it is found to say the same
        trunk.merged = None
        try:
            expected = self._says(trunk, version)
            trunk.merged = work.result()
            differs = float((self._says(trunk, version) - expected).abs().max())
        except Exception as error:
            trunk.merged = None
            log.warning("version %d is not merged: %s", version, error)
            return
        if not differs <= TOLERANCE:
            trunk.merged = None
            log.warning("version %d is not merged: it would score by %.1e nats differently", version, differs)
            return
        self._refused.discard(version)
        log.info("version %d is merged, as long as it answers alone", version)

    @torch.no_grad()
    def _says(self, trunk: FusedTrunk, version: int) -> Tensor:
        """Log probabilities (L, V) of every id after every beginning of some ids."""
        base = trunk.base
        length = min(PROBE, base.context)
        ids = torch.arange(3, 3 + length, device=base.device)[None] % base.model.config.vocab_size
        cache = SlotCache(most=base.context, rows=1, length=length)
        self._bank.select([version], length=length)
        states = trunk.states(ids, cache.begin(0, [0], length, base.device), cache)
        return trunk.logits(states[0]).log_softmax(dim=-1)
