"""Which trunk runs a base on this machine: the fastest that says exactly what the architecture itself says.

    fused, packed -> fused -> stock, packed -> stock

Each is tried against the model's own forward over whole sequences: prompts of different lengths read together and in
pieces, then a step. A trunk that takes the weights and fails leaves nothing behind: the base is loaded again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from server.decoding.bank import AdapterBank
from server.decoding.cache import SlotCache
from server.decoding.fused import FusedTrunk, groups_of, is_of_the_family
from server.decoding.trunk import StockTrunk, Trunk
from server.errors import SetupError
from server.modeling import STRANGE, Base, can_pack, hidden_states, logits_of, pack_linears, unsupported

log = logging.getLogger(__name__)

LENGTHS = (13, 8)
"""Of the probe's two rows."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
FIRST = 7
"""Ids that are read of both before the rest."""


class Fitted(NamedTuple):
    """A base, the trunk that runs it, and the bank that the trunk reads adapters from."""

    base: Base
    trunk: Trunk
    bank: AdapterBank
    expected: Tensor
    """What the architecture itself says to the probe; `check` compares with it at any later time."""


def fit(load: Callable[[], Base], *, fastest: bool = True) -> Fitted:
    """The base that `load` gives, with its trunk. Raises SetupError when not even the stock trunk is exact."""
    base = load()
    expected = says(base)
    *faster, last = _ways(base) if fastest else [_stock]
    for make in faster:
        found = _try(make, base, expected)
        if isinstance(found, Fitted):
            return found
        log.warning("%s: %s; a slower way is taken", base.base_id, found)
        del base  # one copy in memory at a time
        base = load()
    return _fitted(last, base, expected)


Way = Callable[[Base], tuple[Trunk, AdapterBank]]


def _try(make: Way, base: Base, expected: Tensor) -> Fitted | str:
    """What `make` gives, or what is wrong with it: an exception would keep the base alive in its traceback."""
    try:
        return _fitted(make, base, expected)
    except (SetupError, *STRANGE) as error:
        return str(error)


def _fitted(make: Way, base: Base, expected: Tensor) -> Fitted:
    """Raises SetupError unless it says what is expected."""
    trunk, bank = make(base)
    check(base, trunk, bank, expected)
    log.info("the forward is %s", trunk.name)
    return Fitted(base, trunk, bank, expected)


def _ways(base: Base) -> Iterator[Way]:
    packed = can_pack(base.device, base.dtype)
    if is_of_the_family(base):
        yield _fused_packed if packed else _fused
    if packed:
        yield _stock_packed
    yield _stock


def _fused(base: Base, *, packed: bool = False) -> tuple[Trunk, AdapterBank]:
    bank = AdapterBank(base, groups_of(base.model))
    return FusedTrunk(base, bank, packed=packed), bank


def _fused_packed(base: Base) -> tuple[Trunk, AdapterBank]:
    return _fused(base, packed=True)


def _stock(base: Base) -> tuple[Trunk, AdapterBank]:
    return StockTrunk(base), AdapterBank(base)


def _stock_packed(base: Base) -> tuple[Trunk, AdapterBank]:
    pack_linears(base.model)
    return StockTrunk(base, packed=True), AdapterBank(base)


def _probe(base: Base) -> list[Tensor]:
    vocabulary = base.model.config.get_text_config().vocab_size
    return [
        (torch.arange(1, length + 1, device=base.device) * (3 + row)) % vocabulary
        for row, length in enumerate(LENGTHS)
    ]


@torch.no_grad()
def says(base: Base) -> Tensor:
    """Float32 logits (2, V) after each of the probe's rows, by the architecture's own forward."""
    rows = []
    for ids in _probe(base):
        positions = torch.arange(len(ids), device=base.device)[None]
        try:
            rows.append(logits_of(base.model, hidden_states(base.model, ids[None], positions)[0, -1]))
        except STRANGE as error:
            raise unsupported(base.model, f"cannot be run with explicit positions ({error})") from error
    return torch.stack(rows)


@torch.no_grad()
def check(base: Base, trunk: Trunk, bank: AdapterBank | None, expected: Tensor) -> None:
    """Raises SetupError unless `trunk` says to the probe what is `expected`, read in pieces and with a step."""
    rows, cache = _probe(base), SlotCache(most=base.context)
    if bank:
        bank.select([0, 0])

    def states(pieces: list[Tensor], starts: list[int]) -> Tensor:
        length = max(map(len, pieces))
        ids = torch.stack([torch.nn.functional.pad(piece, (0, length - len(piece))) for piece in pieces])
        return trunk.states(ids, cache.begin(0, starts, length, base.device), cache)

    try:
        states([ids[:FIRST] for ids in rows], [0, 0])
        states([ids[FIRST:-1] for ids in rows], [FIRST, FIRST])
        last = states([ids[-1:] for ids in rows], [len(ids) - 1 for ids in rows])
        said = trunk.logits(last[:, 0])
    except STRANGE as error:
        raise unsupported(base.model, f"cannot be run step by step ({error})") from error
    if said.shape != expected.shape or not _is_close(said, expected, TOLERANCE[base.dtype]):
        raise unsupported(base.model, f"says something else when its forward is {trunk.name}")


def _is_close(said: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether logits differ by no more than `tolerance` of their own spread on average, and by ten times it at most."""
    error, spread = (said - expected).abs(), expected.std()
    return bool(error.mean() <= tolerance * spread) and bool(error.max() <= 10 * tolerance * spread)
