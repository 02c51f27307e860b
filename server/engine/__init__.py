"""Engines: what turns prompts into replies. They know nothing of the store.

Importing this package loads no model library: an engine's own imports happen when it is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from server.engine.base import BaseIdentity, Engine
from server.settings import Settings

if TYPE_CHECKING:
    from server.prompts import Renderer


class Served(NamedTuple):
    """An engine, the renderer that belongs to it, and the base whose adapters it takes."""

    engine: Engine
    renderer: Renderer
    base: BaseIdentity


def make_engine(settings: Settings) -> Served:
    """The engine that the settings name. Raises SetupError when there is no such model.

    The one over vLLM watches its servers, so it is made inside of a running event loop.
    """
    if settings.engine == "echo":
        from server.engine.echo import EchoEngine, echo_renderer

        renderer = echo_renderer()
        return Served(EchoEngine(), renderer, BaseIdentity("echo", "echo", renderer.template_hash))
    if settings.engine == "vllm":
        from server.engine.vllm import vllm_engine

        return vllm_engine(settings)
    from server.engine.machine import local_engine

    return local_engine(settings)
