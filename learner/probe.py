"""`probe.json`: a few prompts and responses with their log probabilities as the learner measured them.

Every server scores them again through its own engine before a version serves: what is served is what was trained.
The prompts are Hone's own; no text of a user enters a published folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from learner.rollout import generate, reply_logprobs
from server.modeling import Base, load_adapter, use_adapter

FILE = "probe.json"
NAME = "probed"
RESPONSE_TOKENS = 24

CANARIES = (
    "Hello! How are you?",
    "What can you help me with?",
    "Please write two sentences about the sea.",
    "How do I make a cup of tea?",
    "Give me three ideas for a quiet weekend.",
    "My name is Robin. What is my name?",
    "Why is the sky blue?",
    "Thank you, that was helpful.",
)
"""Eight things that anybody might say, the same in every installation."""


def write_probe(base: Base, model: Any, folder: Path, *, seed: int, micro_batch: int) -> None:
    """Answer the canaries under the adapter in `folder` and leave `probe.json` beside it.

    `model` is the PeftModel around `base`; the adapter stays on it under the name `probed`, switched off.
    """
    context = base.context - RESPONSE_TOKENS
    prompts = [
        base.renderer.render([{"role": "user", "content": text}], max_prompt_tokens=context).token_ids
        for text in CANARIES
    ]
    held = load_adapter(model, NAME, folder)
    use_adapter(held, NAME, trainable=False)
    replies = generate(
        base, prompts, seeds=[seed + i for i in range(len(prompts))], max_new_tokens=RESPONSE_TOKENS
    )
    logprobs = reply_logprobs(held, replies.pairs, name=NAME, micro_batch=micro_batch)
    base_logprobs = reply_logprobs(held, replies.pairs, name=None, micro_batch=micro_batch)
    rows = [
        {
            "prompt_ids": list(prompt),
            "response_ids": list(response),
            "logprobs": ours,
            "base_logprobs": theirs,
        }
        for (prompt, response), ours, theirs in zip(replies.pairs, logprobs, base_logprobs, strict=True)
    ]
    dtype = str(base.dtype).removeprefix("torch.")
    (folder / FILE).write_text(json.dumps({"dtype": dtype, "prompts": rows}) + "\n")
