"""An installation apart shares the machine with the shell's own, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.settings import Settings


def test_an_installation_apart_never_reaches_the_shells_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's scratch directory held nothing when `HONE_DATABASE_URL` named the real record."""
    monkeypatch.setenv("HONE_DATABASE_URL", "postgresql+psycopg://real/record")
    monkeypatch.setenv("HONE_ARTIFACTS_URL", "s3://real/adapters")
    monkeypatch.setenv("HONE_MODEL", "/real/model")
    monkeypatch.setenv("HONE_SEGMENT", "real")
    monkeypatch.setenv("HONE_LEARNER_THREADS", "1")
    settings = Settings.apart(tmp_path)
    assert settings == Settings.model_construct(data_dir=tmp_path, learner_threads=1)
    assert settings.resolved_database_url == f"sqlite:///{tmp_path / 'hone.db'}"
    assert settings.resolved_artifacts_url == str(tmp_path)
    child = settings.environment(apart=True)
    assert not [name for name, value in child.items() if "real" in value and name.startswith("HONE_")]
    for name, value in child.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HONE_SEGMENT")
    assert Settings() == settings
    assert settings.environment()["HONE_DATA_DIR"] == str(tmp_path)
