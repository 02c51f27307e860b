"""The base that the settings name, as this machine runs it fastest, and the engine over it."""

from __future__ import annotations

import torch

from server.decoding import Fitted, affordable_prefill, affordable_prefixes, affordable_tokens, fit
from server.engine import Served
from server.engine.base import BaseIdentity
from server.engine.local import LocalEngine
from server.modeling import load_base
from server.settings import Settings


def fitted_for(settings: Settings) -> Fitted:
    """Raises SetupError when there is no such base, or none that runs here exactly."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return fit(lambda: load_base(settings.model, device=settings.device, dtype=settings.dtype))


def local_engine(settings: Settings) -> Served:
    """Load the base that the settings name and start an engine over it."""
    fitted = fitted_for(settings)
    base = fitted.base
    tokens = settings.cache_tokens or affordable_tokens(base.model.config, base.dtype, base.device)
    kept = affordable_prefixes(base.model.config, base.dtype, context=base.context, tokens=tokens)
    engine = LocalEngine(
        fitted,
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
        cache_tokens=tokens,
        prefix_bytes=kept if settings.prefix_mib is None else settings.prefix_mib * 2**20,
        prefill_tokens=affordable_prefill(fitted.trunk),
    )
    dtype = str(base.dtype).removeprefix("torch.")
    identity = BaseIdentity(base.base_id, base.base_hash, base.renderer.template_hash, dtype)
    return Served(engine, base.renderer, identity)
