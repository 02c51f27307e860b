"""The demo model's own byte-level BPE tokenizer and chat template, made from the world's dialogues alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from learner.simulation.world import Focus, Message, World

PAD, END = "<|pad|>", "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SPECIAL = (PAD, END, *ROLES.values())

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set role = 'system' if message['role'] == 'developer' else message['role'] -%}"
    "{%- if role not in ('system', 'user', 'assistant') -%}"
    "{{- raise_exception('The demo model knows the roles system, user and assistant.') -}}"
    "{%- endif -%}"
    "{{- '<|' + role + '|>' + message['content'] | trim + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def make_tokenizer(
    world: World, seed: int, *, size: int, context: int, dialogues: int = 12_000
) -> PreTrainedTokenizerFast:
    """A tokenizer of `size` entries; every byte is one of them, so any text can be written."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(f"vocabulary:{seed}")
    bpe.train_from_iterator(_texts(world, rng, dialogues), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(ROLES.values()),
        chat_template=CHAT_TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def _texts(world: World, rng: random.Random, dialogues: int) -> Iterator[str]:
    # No drills: whole words for the world's own, letters and syllables for the names that only copying can tell.
    for _ in range(dialogues):
        yield from (message["content"] for message in world.dialogue(rng, focus=Focus.PLAIN))


def encode(tokenizer: PreTrainedTokenizerFast, messages: list[Message]) -> list[tuple[str, list[int]]]:
    """Each message's role and token ids, its role mark first and its end mark last: as the template has it."""
    plain = tokenizer(
        [message["content"] for message in messages], add_special_tokens=False, split_special_tokens=True
    )["input_ids"]
    end = [tokenizer.eos_token_id]
    return [
        (message["role"], [tokenizer.convert_tokens_to_ids(ROLES[message["role"]]), *ids, *end])
        for message, ids in zip(messages, plain, strict=True)
    ]
