"""What the doctor says of the base itself, once it may load it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from server import doctor, doctor_base
from server.doctor import Finding, Level
from server.engine.machine import fitted_for, local_engine
from server.settings import Settings
from tests.fakes import FAMILIES, save_model, tiny_base


def settings(folder: Path, **fields: Any) -> Settings:
    return Settings(**{"data_dir": folder / "data", "port": 0, "model": str(folder / "model"), **fields})


def looked_at(folder: Path, **fields: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in doctor.check_forward(settings(folder, **fields))}


def test_it_names_the_forward_that_serving_takes(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    found = looked_at(tmp_path, threads=1)
    engine = local_engine(settings(tmp_path, threads=1)).engine
    status = asyncio.run(engine.status())
    asyncio.run(engine.close())
    name, _, rest = found["forward"].says.partition(":")
    assert f"({name})" in status.name
    assert rest == " llama in float32 on cpu, 1 thread"
    assert [finding.level for finding in found.values()] == [Level.OK] * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_values_are_counted_as_the_model_itself_keeps_them(family: str, tmp_path: Path) -> None:
    base = tiny_base(family)
    kept = base.model(input_ids=torch.tensor([[1, 2, 3, 4]]), use_cache=True).past_key_values
    tensors = [tensor for layer in kept.layers for tensor in (layer.keys, layer.values)]
    real = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 4
    told = doctor_base.cache(base, settings(tmp_path), affordable=2**20).says
    assert f"take about {real / 1024:.1f} KiB a token" in told
    assert f"{real / 1024:.2f} GiB" in told


def test_the_cache_is_bounded_by_free_memory_or_by_the_setting(tmp_path: Path) -> None:
    base, affordable = tiny_base(), 1000
    free = doctor_base.cache(base, settings(tmp_path), affordable=affordable)
    assert free.level is Level.OK
    assert "half of the free memory holds 1000" in free.says
    assert "7 of 32 replies may use the whole context of 128" in free.says
    given = doctor_base.cache(base, settings(tmp_path, cache_tokens=2000), affordable=affordable)
    assert (given.level, "HONE_CACHE_TOKENS=2000" in given.says) == (Level.OK, True)
    more = doctor_base.cache(base, settings(tmp_path, cache_tokens=2001), affordable=affordable)
    assert (more.level, "HONE_CACHE_TOKENS=1000" in more.mend) == (Level.WARN, True)
    small = doctor_base.cache(base, settings(tmp_path, cache_tokens=127), affordable=affordable)
    assert (small.level, "HONE_DTYPE" in small.mend) == (Level.WARN, True)


def test_an_architecture_that_cannot_be_served_exactly_has_a_way_out(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    config = transformers.BloomConfig(vocab_size=260, hidden_size=32, n_layer=2, n_head=4)
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path / "model")
    (finding,) = looked_at(tmp_path).values()
    assert finding.level is Level.FAIL
    assert "bloom" in finding.says
    assert "vLLM" in finding.mend


def test_a_base_that_does_not_fit_is_told_from_one_that_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model")
    for error, word, mend in (
        (RuntimeError("DefaultCPUAllocator: can't allocate memory\nat …"), "fit into memory", "HONE_DTYPE"),
        (MemoryError(), "fit into memory", "HONE_DTYPE"),
        (TypeError("forward() got an unexpected argument"), "cannot be run", "another base"),
    ):

        def broken(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(doctor_base, "fitted_for", broken)
        (finding,) = looked_at(tmp_path).values()
        assert finding.level is Level.FAIL
        assert word in finding.says
        assert "\n" not in finding.says
        assert mend in finding.mend


def test_a_slower_way_than_expected_is_a_warning_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model")

    def reluctant(settings: Settings) -> Any:
        logging.getLogger("server.decoding.fit").warning("%s: not exact; a slower way is taken", "tiny")
        return fitted_for(settings)

    monkeypatch.setattr(doctor_base, "fitted_for", reluctant)
    finding = looked_at(tmp_path)["forward"]
    assert finding.level is Level.WARN
    assert "tiny: not exact" in finding.says


def test_what_is_missing_is_said_once(tmp_path: Path) -> None:
    """No second traceback from a model that is not there."""
    assert looked_at(tmp_path) == {}


def test_it_is_loaded_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model")
    monkeypatch.setattr(doctor_base, "fitted_for", None)
    (hint,) = [one for one in doctor.examine(settings(tmp_path)) if one.check == "forward"]
    assert (hint.level, hint.mend) == (Level.OK, "")
    assert "hone doctor --load" in hint.says
    monkeypatch.setattr(doctor_base, "fitted_for", fitted_for)
    checks = [one.check for one in doctor.examine(settings(tmp_path), load=True)]
    assert checks[-2:] == ["forward", "cache"]


def test_an_engine_elsewhere_is_not_tried_here(tmp_path: Path) -> None:
    for engine in ("echo", "vllm"):
        found = doctor.examine(settings(tmp_path, engine=engine), load=True)
        assert "forward" not in [one.check for one in found]
