"""The base checkpoint as files: where it lies, whether it can be served, and the hash that adapters are bound to.

Needs no tensors, so that an engine whose weights live elsewhere knows its base by the very same name and hash as
the learner that loads it. Refuses to know prompts, adapters and what the weights mean.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from server.errors import SetupError

SERVED_ATTENTION = {"full_attention", "sliding_attention"}


def locate(model: str) -> Path:
    """The directory that holds the checkpoint; a hub name is downloaded, or taken from the local cache."""
    folder = Path(model)
    if not folder.exists():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise SetupError(f"there is no model at {model}", code="model_missing")
        folder = _download(model)
    if not (folder / "config.json").is_file():
        raise SetupError(f"{model} holds no config.json: not a transformers checkpoint", code="model_missing")
    if not any(folder.glob("*.safetensors")):
        raise SetupError(
            f"{model} holds no *.safetensors weights (no other format is read)", code="model_missing"
        )
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise SetupError(
            f"{name} is neither a directory here nor a model that could be fetched from the hub: {error}",
            code="model_missing",
        ) from error


def base_id_of(model: str, folder: Path) -> str:
    """What the base is called: the hub's name, or that of its directory, wherever it lies."""
    return folder.name if Path(model).exists() else model


def read_config(folder: Path) -> Any:
    """The checkpoint's configuration, as transformers reads it."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def check_servable(config: Any) -> None:
    """Raises SetupError for an architecture whose state is more than one key and value per token and layer."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - SERVED_ATTENTION
    if getattr(config, "is_encoder_decoder", False) or kinds:
        raise SetupError(
            f"{config.model_type} is not a plain decoder-only model ({', '.join(sorted(kinds)) or 'encoder-decoder'})",
            code="model_unsupported",
        )


def hash_base(folder: Path) -> str:
    """sha256 over the configuration and the weights, in the order of their names."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
