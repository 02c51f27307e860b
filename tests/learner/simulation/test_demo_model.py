"""The committed demo model: complete, small, and described by a card that programs can read too."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from learner.simulation.card import below_bars, compare, read_figures
from learner.simulation.measure import DISTANCES, VALUES, generate, measure
from learner.simulation.names import COMMON
from learner.simulation.sayings import STATES
from server.modeling.base import load_base
from server.settings import DEMO_MODEL

FILES = {
    "MODEL_CARD.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_the_folder_is_complete_and_small() -> None:
    files = {file.name: file.stat().st_size for file in Path(DEMO_MODEL).iterdir()}
    assert set(files) == FILES
    assert sum(files.values()) <= 12 * 2**20


def test_tokenizer_config_and_template_agree() -> None:
    config, tokenizer = AutoConfig.from_pretrained(DEMO_MODEL), AutoTokenizer.from_pretrained(DEMO_MODEL)
    assert config.vocab_size == len(tokenizer)
    assert config.max_position_embeddings >= 512
    assert config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id == config.pad_token_id
    generation = json.loads((Path(DEMO_MODEL) / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|user|>hi<|end|><|assistant|>"


def test_the_card_promises_what_the_demo_model_must_hold() -> None:
    figures = read_figures(Path(DEMO_MODEL))
    assert below_bars(figures) == []
    assert set(figures["recall"]) == set(map(str, DISTANCES))
    assert {axis: tuple(shares) for axis, shares in figures["styles"].items()} == VALUES


@pytest.mark.full
def test_the_cards_figures_hold_when_measured_again() -> None:
    """Other prompts than the card's, so equal only within their intervals."""
    text, holds = compare(read_figures(Path(DEMO_MODEL)), measure(Path(DEMO_MODEL), seed=1))
    assert holds, text


@pytest.mark.full
def test_people_whose_names_training_never_had_are_called_by_them() -> None:
    """First names of people, not made up as those of the card are; what is left is a small model's stumbling."""
    names = "Priyanka Xiomara Brooklyn Kaito Saoirse Bartholomew Oluwaseun Siddharth Marguerite Ekaterina"
    people = names.split()
    assert not set(people) & set(COMMON)
    stated = [(name, says.format(name=name)) for name in people for says in STATES["name"]]
    base = load_base(str(DEMO_MODEL), dtype="float32")
    prompts = [
        [
            {"role": "user", "content": says},
            {"role": "assistant", "content": "Nice to meet you."},
            {"role": "user", "content": "what is my name?"},
        ]
        for name, says in stated
    ]
    replies, _ = generate(base.model, base.renderer, prompts, temperature=0.7, seed=0)
    right = [name in reply for (name, _), reply in zip(stated, replies, strict=True)]
    assert sum(right) >= 0.8 * len(right)
