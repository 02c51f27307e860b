"""The committed demo model: complete, small, and described by a card that programs can read too."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from learner.simulation.card import read_figures
from learner.simulation.measure import measure
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
    assert figures["on_topic"] >= 0.95
    assert figures["well_formed"] >= 0.95
    assert figures["cramers_v_max"] <= 0.15
    assert all(figures["recall"][turns]["right"] >= 0.90 for turns in ("0", "1", "2", "4"))
    for axis, shares in figures["styles"].items():
        assert all(share >= 0.05 for share in shares.values()), axis


@pytest.mark.full
def test_the_cards_figures_hold_when_measured_again() -> None:
    """Other prompts than the card's, so equal only within their intervals."""
    card, again = read_figures(Path(DEMO_MODEL)), measure(Path(DEMO_MODEL), replies=500, seed=1)
    for figure in ("on_topic", "well_formed", "acceptable"):
        assert again[figure] == pytest.approx(card[figure], abs=0.04)
    assert again["tokens_mean"] == pytest.approx(card["tokens_mean"], rel=0.1)
