"""Room for keys and values: what a container allows, and what earlier turns may keep of it."""

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from server.decoding import room
from server.decoding.prefixes import Prefixes

GIB = 2**30


@pytest.mark.parametrize(
    ("most", "free"), [("max\n", 64 * GIB), (str(2 * GIB), int(1.5 * GIB)), (str(GIB // 4), 0)]
)
def test_a_containers_limit_counts(
    most: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_free", lambda: 64 * GIB)
    assert room.available_bytes(tmp_path) == 64 * GIB  # no such files
    (tmp_path / "memory.max").write_text(most)
    (tmp_path / "memory.current").write_text(str(GIB // 2))
    assert room.available_bytes(tmp_path) == free


def test_of_a_long_reply_the_beginning_is_kept() -> None:
    keys = torch.arange(200.0).reshape(1, 100, 2)
    prefixes = Prefixes(2 * keys[:, :60].nbytes)
    ids = tuple(range(100))
    prefixes.keep(3, ids, {0: (keys, -keys)})
    found = prefixes.find(3, (*ids, 100))
    assert found
    assert found.length == 60
    assert torch.equal(found.kept[0][1], -keys[:, :60])
    assert prefixes.held_bytes == 2 * keys[:, :60].nbytes
    tiny = Prefixes(2 * keys[:, :8].nbytes)  # fewer than are worth it
    tiny.keep(3, ids, {0: (keys, -keys)})
    assert not len(tiny)


def test_finished_replies_keep_a_share_of_what_running_ones_may_take() -> None:
    small, large = (
        LlamaConfig(
            hidden_size=size, num_attention_heads=heads, num_key_value_heads=kept, num_hidden_layers=layers
        )
        for size, heads, kept, layers in ((256, 4, 4, 4), (4096, 32, 8, 32))
    )
    kept = partial(room.affordable_prefixes, dtype=torch.bfloat16)
    assert kept(small, context=512, tokens=1_000_000) == 64 * 2**20
    assert kept(large, context=8192, tokens=1_000_000) == 8 * GIB
    assert kept(large, context=8192, tokens=80_000) == 10_000 * room.bytes_per_token(large, torch.bfloat16)
