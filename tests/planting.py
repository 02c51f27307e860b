"""Random adapters, published and registered as the learner would: versions to swap without training any."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from learner.probe import CANARIES, RESPONSE_TOKENS
from server.artifacts import MANIFEST, Artifacts
from server.decoding import Decoder, DecodeRequest, generate_offline
from server.engine.base import Sampling
from server.modeling import Base, load_adapter, load_base, sequence_logprobs, use_adapter
from server.probe import FILE as PROBE
from server.settings import DEMO_MODEL
from server.store import adapters
from server.store.session import open_store
from tests.fakes import random_adapter

QUESTIONS = ("Hello!", "How do I boil an egg?", "Tell me about tea.", "What can you do?")
"""For who only wants to ask something; what a probe asks is the learner's own choice."""


def plant(data_dir: Path, *, count: int, model: str = str(DEMO_MODEL), strength: float = 0.05) -> list[int]:
    """Publish `count` random adapters for `model` into a data directory; returns their versions."""
    with tempfile.TemporaryDirectory() as scratch:
        base = load_base(model)
        folders = [
            random_adapter(base, Path(scratch) / str(seed), seed=seed, rank=8, strength=strength)
            for seed in range(1, count + 1)
        ]
        return plant_folders(data_dir, folders, model=model)


def plant_folders(data_dir: Path, folders: Iterable[Path], *, model: str = str(DEMO_MODEL)) -> list[int]:
    """Publish adapters that lie in PEFT folders, which stay as they are; returns their versions."""
    artifacts, store = (
        Artifacts(str(data_dir.absolute())),
        open_store(f"sqlite:///{data_dir.absolute()}/hone.db"),
    )
    versions = []
    for folder in folders:
        base = load_base(model)  # anew each time: peft wraps its layers in place
        version = store.write(lambda session: adapters.reserve_version(session))
        name = f"adapters/default/v{version:06d}"
        staged = artifacts.stage(name)
        shutil.copytree(folder, staged, dirs_exist_ok=True)
        (staged / PROBE).write_text(json.dumps(probe_of(base, staged)))
        manifest = {
            "format": 1,
            "kind": "adapter",
            "version": version,
            "segment": "default",
            "parent": 0,
            "cycle": None,
            "base": {"id": base.base_id, "hash": base.base_hash},
            "template_hash": base.renderer.template_hash,
            "verdict": {"passed": True, "reasons": ["planted for a test"], "numbers": {}},
        }
        artifacts.seal(staged, manifest)
        digest = artifacts.publish(staged, name)
        sealed = json.loads((artifacts.fetch(name) / MANIFEST).read_text())
        store.write(
            lambda session, version=version, name=name, sealed=sealed, digest=digest: adapters.register(
                session,
                version=version,
                segment="default",
                parent=0,
                cycle_id=None,
                path=name,
                manifest=sealed,
                manifest_sha256=digest,
                passed=True,
                trained_through=0,
            )
        )
        versions.append(version)
    store.close()
    return versions


def probe_of(base: Base, folder: Path) -> dict[str, object]:
    """What the learner would have measured: log probabilities under the adapter and under the bare base."""
    prompts = [base.renderer.render([{"role": "user", "content": text}]).token_ids for text in CANARIES]
    requests = [
        DecodeRequest(i, prompt, Sampling(max_tokens=RESPONSE_TOKENS, seed=i), version=0)
        for i, prompt in enumerate(prompts)
    ]
    responses = [list(done.token_ids) for done in generate_offline(Decoder(base), requests)]
    tuned = load_adapter(base.model, "planted", folder)
    pairs = list(zip(prompts, responses, strict=True))
    with torch.no_grad():
        ours = sequence_logprobs(tuned, pairs)
        use_adapter(tuned, None, trainable=False)
        bare = sequence_logprobs(tuned, pairs)
    rows = [
        {
            "prompt_ids": list(prompt),
            "response_ids": response,
            "logprobs": own.tolist(),
            "base_logprobs": other.tolist(),
        }
        for prompt, response, own, other in zip(prompts, responses, ours, bare, strict=True)
    ]
    return {"prompts": rows, "dtype": "float32"}
