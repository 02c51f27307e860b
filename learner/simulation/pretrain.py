"""Trains the demo model from scratch on the simulated world's dialogues and writes it with its card.

seed + recipe -> tokenizer -> batches -> steps -> model folder · measured by `measure`, described by `card`.
A killed run goes on from its last checkpoint and ends with the same bytes as an unbroken one. What it keeps lies in a
hidden folder beside the model's, which belongs to one run at a time.
Knows nothing of serving, of votes or of the learner's own training.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from learner.simulation.batches import Batch, Batches, Mixture
from learner.simulation.card import CARD, write_card
from learner.simulation.measure import measure
from learner.simulation.vocabulary import make_tokenizer
from learner.simulation.world import World
from server.errors import SetupError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """All that decides the demo model's weights, besides the seed and the number of threads."""

    vocabulary: int = 4096
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 3
    intermediate: int = 512
    context: int = 512
    steps: int = 15_000
    tokens: int = 2048
    """Padded tokens per batch."""
    lr: float = 6e-3
    """Of the matrices between states, by Muon …"""
    outer_lr: float = 4e-3
    """… and of the embeddings and norms, by AdamW."""
    warmup: int = 150
    weight_decay: float = 0.05
    early: Mixture = field(default_factory=Mixture)
    """The mixture until copying is learnt."""
    late: Mixture = field(default_factory=lambda: Mixture(drill=0.05, recall=0.25))
    early_share: float = 0.2
    autocast: bool = True
    """bfloat16 matrix products; about 15 % faster on a CPU that has them."""

    def mixture(self, step: int) -> Mixture:
        return self.early if step < self.early_share * self.steps else self.late

    def pace(self, step: int) -> float:
        """The share of the learning rates at this step: linear up, then linear down to a fiftieth."""
        up = min(1.0, (step + 1) / self.warmup)
        down = max(0.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return up * (1 - 0.98 * down)


@dataclass
class Run:
    """A training run in progress: everything that a checkpoint holds."""

    model: LlamaForCausalLM
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0
    pool: int = 0
    """Pools of batches that are behind it; a run is resumed at a pool's edge."""
    seconds: float = 0.0
    peak_bytes: int = 0
    """The most memory that this process, or one that the run was begun in, has had resident."""


Progress = Callable[[int, int, float], None]
"""Told (step, steps, mean loss of the last steps) now and then."""


def pretrain(
    out_dir: Path,
    *,
    seed: int = 0,
    minutes: float | None = None,
    threads: int = 2,
    resume: bool = True,
    recipe: Recipe = Recipe(),
    replies: int = 2000,
    checkpoint_every: int = 6,
    on_progress: Progress | None = None,
) -> dict[str, Any] | None:
    """Train, write and measure the model; returns the card's figures.

    After `minutes` of training, if given, the run stops and keeps its checkpoint: None is returned, nothing is
    written to `out_dir`, and the next call goes on. A checkpoint is kept every `checkpoint_every` pools.
    `resume=False`, or a checkpoint of anything but this very run, leaves the older one aside and begins anew.
    Raises SetupError when another run is making the same folder.
    """
    torch.set_num_threads(threads)
    with _work_dir(out_dir) as work_dir:
        checkpoint = work_dir / "checkpoint.pt"
        world = World()
        tokenizer = make_tokenizer(world, seed, size=recipe.vocabulary, context=recipe.context)
        batches = Batches(world, tokenizer, seed, tokens=recipe.tokens, context=recipe.context)
        made_from = {
            "recipe": asdict(recipe),
            "seed": seed,
            "threads": threads,
            "torch": str(torch.__version__),
            "dialogues": _fingerprint(tokenizer, batches, recipe),
        }
        run = _start(tokenizer, recipe, seed)
        if checkpoint.exists():
            _restore(run, checkpoint, made_from, resume=resume)
        stop_at = math.inf if minutes is None else time.monotonic() + 60 * minutes
        began = time.monotonic() - run.seconds
        while run.step < recipe.steps:
            _train_pool(run, batches, recipe, on_progress)
            run.seconds = time.monotonic() - began
            is_over = time.monotonic() > stop_at and run.step < recipe.steps
            if is_over or run.step >= recipe.steps or run.pool % checkpoint_every == 0:
                _save(run, checkpoint, made_from)
            if is_over:
                return None
        staged = work_dir / "model"
        _export(run.model, tokenizer, staged)
        figures = measure(staged, replies=replies, seed=seed)
        write_card(
            staged,
            figures,
            recipe=asdict(recipe),
            topics=[topic.title for topic in world.topics],
            parameters=sum(p.numel() for p in run.model.parameters()),
            seed=seed,
            threads=threads,
            seconds=run.seconds,
            peak_bytes=max(run.peak_bytes, _peak_bytes()),
        )
        _move(staged, out_dir)
        checkpoint.unlink()
    return figures


@contextmanager
def _work_dir(out_dir: Path) -> Iterator[Path]:
    """The folder beside `out_dir` that keeps a run's checkpoint, for this run alone; gone once it is empty.

    Raises SetupError when it is taken, or cannot be.
    """
    out_dir = out_dir.resolve()
    if out_dir.exists() and not out_dir.is_dir():
        raise SetupError(f"{out_dir} is not a folder")
    work_dir = out_dir.with_name(f".{out_dir.name}.pretrain")
    lock = work_dir / "lock"
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise SetupError(f"cannot keep a checkpoint in {work_dir}: {error.strerror}") from error
    with file:
        try:
            # The system lets go of the lock when the process ends, however it does.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run that ended in between has removed the file, and the next may have made another.
            is_ours = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except OSError:
            is_ours = False
        if not is_ours:
            raise SetupError(f"another run is making {out_dir}")
        try:
            yield work_dir
        finally:
            lock.unlink()
            with suppress(OSError):  # something is kept: a checkpoint to go on from, or one left aside
                work_dir.rmdir()


def _fingerprint(
    tokenizer: PreTrainedTokenizerFast, batches: Batches, recipe: Recipe, *, pools: int = 6
) -> str:
    """Of what is learned from: the tokenizer, and some hundreds of dialogues as the model meets them."""
    seen = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for number in range(pools):
        for mixture in (recipe.early, recipe.late):
            for batch in batches.pool(number, mixture):
                seen.update(batch.token_ids.numpy().tobytes() + batch.weights.numpy().tobytes())
    return seen.hexdigest()


def _start(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> Run:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # On a CPU the fused kernel is slower over rows this short, backward most of all.
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.train()
    # Muon (Jordan et al. 2024) is for the matrices between states; the learning log has it beside AdamW alone.
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed_tokens" in name]
    muon = torch.optim.Muon(
        inner, lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(outer, lr=recipe.outer_lr, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0)
    return Run(model, (muon, adamw))


def _train_pool(run: Run, batches: Batches, recipe: Recipe, on_progress: Progress | None) -> None:
    """The steps of one pool, or those that are left."""
    losses: list[float] = []
    for batch in batches.pool(run.pool, recipe.mixture(run.step)):
        if run.step == recipe.steps:
            break
        losses.append(_step(run, batch, recipe))
        run.step += 1
    run.pool += 1
    if on_progress:
        on_progress(run.step, recipe.steps, sum(losses) / len(losses))


def _step(run: Run, batch: Batch, recipe: Recipe) -> float:
    for optimizer, lr in zip(run.optimizers, (recipe.lr, recipe.outer_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr * recipe.pace(run.step)
    loss = _loss(run.model, batch, autocast=recipe.autocast)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _loss(model: LlamaForCausalLM, batch: Batch, *, autocast: bool) -> Tensor:
    """Weighted mean of the next token's negative log-probability.

    Padding stands on the right and attention looks left only, so no attention mask is needed; logits are made
    only where a token counts.
    """
    targets, weights = batch.token_ids[:, 1:], batch.weights[:, 1:]
    counts = weights > 0
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden = model.model(
            input_ids=batch.token_ids[:, :-1], use_cache=False
        ).last_hidden_state  # (B, T-1, H)
        logits = model.lm_head(hidden[counts])  # (N, V)
    losses = torch.nn.functional.cross_entropy(logits.float(), targets[counts], reduction="none")
    return (losses * weights[counts]).sum() / weights[counts].sum()


def _save(run: Run, checkpoint: Path, made_from: dict[str, Any]) -> None:
    """Whole or not at all: a kill while saving leaves the older checkpoint."""
    run.peak_bytes = max(run.peak_bytes, _peak_bytes())
    partial = checkpoint.with_suffix(".tmp")
    with partial.open("wb") as file:
        state = {
            "made_from": made_from,
            "model": run.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
            "step": run.step,
            "pool": run.pool,
            "seconds": run.seconds,
            "peak_bytes": run.peak_bytes,
        }
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(checkpoint)


def _restore(run: Run, checkpoint: Path, made_from: dict[str, Any], *, resume: bool) -> None:
    """Back to the checkpoint if it is this very run's; any other would not end with the same bytes."""
    state = torch.load(checkpoint, weights_only=True)
    others = [name for name, value in made_from.items() if state["made_from"].get(name) != value]
    if others or not resume:
        aside = next(path for n in count(1) if not (path := checkpoint.with_name(f"aside-{n}.pt")).exists())
        checkpoint.rename(aside)
        why = f"made with other {' and '.join(others)}" if others else "not wanted"
        logger.warning("beginning anew: the last checkpoint was %s; it is left in %s", why, aside)
        return
    run.model.load_state_dict(state["model"])
    for optimizer, saved in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    run.step, run.pool, run.seconds = state["step"], state["pool"], state["seconds"]
    run.peak_bytes = state["peak_bytes"]
    logger.info("going on from step %d", run.step)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(
        do_sample=True,
        temperature=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)


def _move(staged: Path, out_dir: Path) -> None:
    """File by file, the card last: a folder whose card is new is new as a whole."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for file in sorted(staged.iterdir(), key=lambda file: (file.name == CARD, file.name)):
        arriving = out_dir / f"{file.name}.tmp"
        shutil.copyfile(file, arriving)
        arriving.replace(out_dir / file.name)
    shutil.rmtree(staged)
