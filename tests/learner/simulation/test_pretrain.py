"""Making the demo model: reproducible, resumable, never half-written; and its tokenizer and batches."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import learner.simulation.pretrain as making
from learner.simulation.batches import Batches, Mixture
from learner.simulation.card import read_figures
from learner.simulation.pretrain import Recipe, pretrain
from learner.simulation.vocabulary import encode, make_tokenizer
from learner.simulation.world import Focus, World
from server.errors import SetupError
from server.prompts import Renderer

TINY = Recipe(
    vocabulary=400, hidden=32, layers=1, heads=2, kv_heads=1, intermediate=64, steps=60, tokens=512, warmup=5,
    autocast=False,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _few_dialogues() -> Iterator[None]:
    """Tokenizers from fewer dialogues: they take most of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "make_tokenizer", partial(make_tokenizer, dialogues=500))
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(World(), 0, size=600, context=256, dialogues=500)


WORK = ".model.pretrain"


def train(folder: Path, **overrides):
    settings = {"recipe": TINY, "threads": 1, "replies": 4, "checkpoint_every": 1}
    return pretrain(folder / "model", **{**settings, **overrides})


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """The folder of a run that nothing disturbed, and its losses."""
    folder, losses = tmp_path_factory.mktemp("unbroken"), []
    train(folder, on_progress=lambda step, steps, loss: losses.append(loss))
    return folder, losses


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "model").iterdir() if file.suffix != ".md"}


class Killed(BaseException):
    """Stands for a kill: nothing in the code may catch it."""


def killer(at: int):
    def on_progress(step: int, steps: int, loss: float) -> None:
        if step >= at:
            raise Killed

    return on_progress


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes_as_an_unbroken_one(
    tmp_path: Path, unbroken: tuple[Path, list[float]]
) -> None:
    for at in (20, 40):
        with pytest.raises(Killed):
            train(tmp_path / "killed", on_progress=killer(at))
        # What a kill in the middle of a save leaves behind.
        (tmp_path / "killed" / WORK).mkdir(exist_ok=True)
        (tmp_path / "killed" / WORK / "checkpoint.tmp").write_bytes(b"half a checkpoint")
        (tmp_path / "killed" / WORK / "lock").touch()
    assert not (tmp_path / "killed" / "model").exists()
    reached: list[int] = []
    train(tmp_path / "killed", on_progress=lambda step, steps, loss: reached.append(step))
    assert reached[0] > 20, "the third run began from the start"
    assert files(tmp_path / "killed") == files(unbroken[0])
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["model"]


def test_minutes_stop_a_run_which_the_next_call_finishes(tmp_path: Path) -> None:
    assert train(tmp_path, minutes=0) is None
    assert not (tmp_path / "model").exists()
    figures = train(tmp_path)
    assert figures is not None
    assert read_figures(tmp_path / "model") == figures
    assert not (tmp_path / WORK).exists()


def test_another_seed_makes_another_model(tmp_path: Path, unbroken: tuple[Path, list[float]]) -> None:
    train(tmp_path, seed=2)
    assert files(tmp_path)["model.safetensors"] != files(unbroken[0])["model.safetensors"]


class OtherWorld(World):
    """The same topics and words, but everyone is answered in capitals."""

    def reply(self, messages, rng, *, style=None) -> str:
        return super().reply(messages, rng, style=style).upper()


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A folder with the checkpoint of a run that was stopped after its first pool."""
    assert train(tmp_path, minutes=0) is None
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"threads": 2}, "other threads"),
        ({"seed": 5}, "other seed and dialogues"),
        ({"recipe": replace(TINY, steps=50)}, "other recipe"),
        ({"resume": False}, "not wanted"),
    ],
)
def test_a_checkpoint_of_another_run_is_left_aside(
    stopped: Path, caplog: pytest.LogCaptureFixture, changed: dict, why: str
) -> None:
    """One of other threads was gone on from, and the end was nobody's bytes; an unwanted one was overwritten."""
    begun, reached = (stopped / WORK / "checkpoint.pt").read_bytes(), []
    train(stopped, minutes=0, on_progress=lambda step, steps, loss: reached.append(step), **changed)
    assert reached[0] < 30, "it went on from the older checkpoint"
    assert (stopped / WORK / "aside-1.pt").read_bytes() == begun
    assert [why in line and "aside-1.pt" in line for line in caplog.messages if "anew" in line] == [True]


def test_a_checkpoint_of_another_world_is_left_aside(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that was begun before the world changed went on in the new one, its tokenizer another by then."""
    monkeypatch.setattr(making, "World", OtherWorld)
    train(stopped)
    assert "other dialogues" in caplog.text
    assert [path.name for path in (stopped / WORK).iterdir()] == ["aside-1.pt"], (
        "the run's own was not tidied up"
    )


def test_a_second_run_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    """Two wrote the same checkpoint by turns. Another folder's run is no concern of theirs."""
    refused: list[str] = []

    def second(step: int, steps: int, loss: float) -> None:
        with pytest.raises(SetupError, match="another run is making") as error:
            train(tmp_path)
        refused.append(error.value.message)
        assert train(tmp_path / "elsewhere", minutes=0) is None

    assert train(tmp_path, minutes=0, on_progress=second) is None
    assert len(refused) == 1
    assert "\n" not in refused[0]
    assert (tmp_path / WORK / "checkpoint.pt").exists()
    assert (tmp_path / "elsewhere" / WORK / "checkpoint.pt").exists()


def test_what_a_run_keeps_lies_beside_its_model_wherever_it_is_started(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = stopped / "away"
    away.mkdir()
    monkeypatch.chdir(stopped)
    steps: list[int] = []
    seen = {"on_progress": lambda step, steps_, loss: steps.append(step)}
    pretrain(Path("model"), recipe=TINY, threads=1, replies=4, minutes=0, **seen)
    monkeypatch.chdir(away)
    pretrain(Path("../model"), recipe=TINY, threads=1, replies=4, minutes=0, **seen)
    assert 20 < steps[0] < steps[1]
    assert list(away.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    with pytest.raises(SetupError, match="is not a folder"):
        train(tmp_path)
    with pytest.raises(SetupError, match="cannot keep a checkpoint"):
        train(tmp_path / "model")


def test_the_card_tells_time_and_memory(unbroken: tuple[Path, list[float]]) -> None:
    text = (unbroken[0] / "model" / "MODEL_CARD.md").read_text()
    stated = json.loads(text.split("```json\n")[1].split("```")[0])
    assert 100 < stated["peak_megabytes"] < 20_000
    assert f"{stated['peak_megabytes'] / 1000:.1f} GB of memory at its peak" in text


def test_the_loss_falls(unbroken: tuple[Path, list[float]]) -> None:
    losses = unbroken[1]
    assert losses[-1] < losses[0] - 0.5


def test_the_written_folder_loads_with_plain_transformers_in_bfloat16(
    unbroken: tuple[Path, list[float]],
) -> None:
    model = AutoModelForCausalLM.from_pretrained(unbroken[0] / "model")
    tokenizer = AutoTokenizer.from_pretrained(unbroken[0] / "model")
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_training_sees_a_conversation_as_serving_renders_it(tokenizer) -> None:
    world, rng, renderer = World(), random.Random(1), Renderer(tokenizer, context=512)
    for _ in range(100):
        messages = [{"role": "system", "content": "Be kind."}, *world.prompt(rng)]
        turns = [token for _, ids in encode(tokenizer, messages) for token in ids]
        mark = tokenizer.convert_tokens_to_ids("<|assistant|>")
        assert renderer.render(messages).token_ids == (*turns, mark)
    assert renderer.stop_ids == {tokenizer.eos_token_id}


@pytest.mark.parametrize(
    "text", ["Größe 東京 🎉\n- x", "  two  spaces ", "<|end|> typed by a user", "\x00\x7f"]
)
def test_any_text_survives_the_tokenizer_and_no_text_becomes_a_mark(tokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_the_template_takes_a_developer_for_the_system_and_refuses_unknown_roles(tokenizer) -> None:
    def text(role: str) -> str:
        messages = [{"role": role, "content": " be kind "}, {"role": "user", "content": "hi"}]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    assert text("developer") == text("system") == "<|system|>be kind<|end|><|user|>hi<|end|><|assistant|>"
    with pytest.raises(Exception, match="knows the roles"):
        text("tool")


def test_a_pool_of_batches_depends_on_seed_and_number_alone(tokenizer) -> None:
    first, second = (Batches(World(), tokenizer, 3, tokens=1024, context=256) for _ in range(2))
    second.pool(0, Mixture())
    one, two = first.pool(1, Mixture()), second.pool(1, Mixture())
    assert all(torch.equal(a.token_ids, b.token_ids) for a, b in zip(one, two, strict=True))
    other = Batches(World(), tokenizer, 4, tokens=1024, context=256).pool(1, Mixture())
    assert not torch.equal(one[0].token_ids, other[0].token_ids)


def test_a_batch_fits_its_budget_and_weighs_replies_users_and_marks_apart(tokenizer) -> None:
    batches = Batches(World(), tokenizer, 5, tokens=1024, context=256)
    for batch in batches.pool(0, Mixture(user_weight=0.25), size=4):
        assert batch.token_ids.numel() <= 1024
        assert batch.token_ids.shape == batch.weights.shape
        is_pad = batch.token_ids == tokenizer.pad_token_id
        assert set(batch.weights.unique().tolist()) <= {0.0, 0.25, 1.0}
        assert batch.weights[is_pad].sum() == 0
        for role in ("user", "assistant"):
            marks = batch.token_ids == tokenizer.convert_tokens_to_ids(f"<|{role}|>")
            assert batch.weights[marks].sum() == 0
        assert (batch.weights == 1.0).any(dim=1).all(), "a dialogue without a reply teaches nothing"


def test_the_mixture_is_what_it_says() -> None:
    rng = random.Random(6)
    drawn = [Mixture(drill=0.25, recall=0.35).focus(rng) for _ in range(4000)]
    assert drawn.count(Focus.DRILL) / 4000 == pytest.approx(0.25, abs=0.03)
    assert drawn.count(Focus.RECALL) / 4000 == pytest.approx(0.35, abs=0.03)
