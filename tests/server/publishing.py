"""Published adapters for an engine without a model: whole folders, with probes that hold or do not."""

from __future__ import annotations

import json
from typing import Any

from sqlmodel import Session

from server.artifacts import Artifacts
from server.engine.echo import echo_renderer, logprob
from server.settings import Settings
from server.store import adapters
from server.store.session import Store

ANSWERED = (
    (tuple(b"what is rain?"), tuple(b"it is water")),
    (tuple(b"and snow?"), tuple(b"the same, colder")),
)


def probe(version: int, *, off_by: float = 0.0) -> dict[str, Any]:
    """What the echo engine will answer for `version`, or something `off_by` nats away from it."""
    rows = [
        {
            "prompt_ids": list(prompt),
            "response_ids": list(response),
            "logprobs": [logprob(version, prompt, response, at) + off_by for at in range(len(response))],
            "base_logprobs": [logprob(0, prompt, response, at) for at in range(len(response))],
        }
        for prompt, response in ANSWERED
    ]
    return {"prompts": rows, "dtype": "float32"}


def publish(
    store: Store,
    settings: Settings,
    *,
    segment: str = "default",
    off_by: float = 0.0,
    base_hash: str = "echo",
    template_hash: str = "",
    passed: bool = True,
    spoil: str = "",
    **facts: Any,
) -> int:
    """A new version in the registry and on disk, with `facts` in its manifest; `spoil` names a file that is changed
    after it was sealed."""
    artifacts = Artifacts(settings.resolved_artifacts_url, cache=settings.data_dir)
    version = store.write(adapters.reserve_version)
    path = f"adapters/{segment}/v{version:06d}"
    folder = artifacts.stage(path)
    (folder / "plots").mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "probe.json").write_text(json.dumps(probe(version, off_by=off_by)))
    (folder / "samples.md").write_text("# canaries\n")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "plots" / "kl.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    manifest = {
        "format": 1,
        "kind": "adapter",
        "version": version,
        "segment": segment,
        "parent": 0,
        "base": {"id": "echo", "hash": base_hash},
        "template_hash": template_hash or echo_renderer().template_hash,
        "metrics": {"reward": 0.5},
        "verdict": {"passed": passed, "reasons": ["planted"]},
        **facts,
    }
    artifacts.seal(folder, manifest)
    sha256 = artifacts.publish(folder, path)
    if spoil:
        (artifacts.fetch(path) / spoil).write_text("changed")

    def register(session: Session) -> None:
        sealed = json.loads((artifacts.fetch(path) / "manifest.json").read_text())
        adapters.ensure_segment(session, segment)
        adapters.register(
            session,
            version=version,
            segment=segment,
            parent=0,
            cycle_id=None,
            path=path,
            manifest=sealed,
            manifest_sha256=sha256,
            passed=passed,
            trained_through=0,
        )

    store.write(register)
    return version
