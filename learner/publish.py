"""From a cycle's folder to numbered, sealed folders that serve: `reward/v000007`, `adapters/<segment>/v000013`.

Owns what a manifest says and that a number is taken once and remembered, so that a killed learner neither skips nor
reuses one. Knows nothing of training. No text of a user ever enters a published folder.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from sqlmodel import Session

from learner.tenure import Tenure
from server.artifacts import MANIFEST, Artifacts
from server.errors import Conflict, NotFound
from server.store import adapters
from server.store.tables import Cycle

log = logging.getLogger(__name__)

FORMAT = 1


class Numbers(NamedTuple):
    """What a cycle's results are called for ever."""

    version: int
    reward_version: int


def reserve(tenure: Tenure, cycle_id: str) -> Numbers:
    """The cycle's numbers: taken once, in the same transaction that writes them into its row."""

    def work(session: Session) -> Numbers:
        row = session.get_one(Cycle, cycle_id)
        if row.version is None or row.reward_version is None:
            row.version = adapters.reserve_version(session)
            row.reward_version = adapters.reserve_version(session, name="reward_version")
            session.add(row)
        return Numbers(row.version, row.reward_version)

    return tenure.write(work)


def adapter_path(segment: str, version: int) -> str:
    return f"adapters/{segment}/v{version:06d}"


def reward_path(version: int) -> str:
    return f"reward/v{version:06d}"


def publish(
    artifacts: Artifacts, *, tenure: Tenure, source: Path, path: str, manifest: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Copy `source` out, seal it with `manifest` and make it appear whole; returns its manifest and that file's sha256.

    Done before by this very cycle: found and left as it is. The lease is confirmed just before anything appears.
    """
    found = _published(artifacts, path)
    if found is None:
        staged = artifacts.stage(path)
        try:
            shutil.copytree(source, staged, dirs_exist_ok=True)
            artifacts.seal(staged, dict(manifest))
            tenure.confirm()
            artifacts.publish(staged, path)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        log.info("published %s", path, extra={"cycle": manifest["cycle"]})
        found = _published(artifacts, path)
    assert found is not None, f"{path} was just published"
    sealed, digest = found
    if sealed.get("cycle") != manifest["cycle"]:
        raise Conflict(f"{path} is already there, from another cycle", code="version_taken")
    return sealed, digest


def _published(artifacts: Artifacts, path: str) -> tuple[dict[str, Any], str] | None:
    """The verified manifest at `path` and its sha256, or None when nothing stands there."""
    try:
        folder = artifacts.fetch(path)
    except NotFound:
        return None
    manifest = artifacts.verify(folder)
    return manifest, sha256((folder / MANIFEST).read_bytes()).hexdigest()
