"""What every step of one cycle is given: its row, its folder, the doors to record and artifacts, the base model.

Owns that the base is loaded once for all roles, and that every step finds it bare. Knows nothing of what steps do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from learner.config import LearnerConfig
from learner.tenure import Tenure
from learner.watch import Watch
from learner.workdir import WorkDir
from server.artifacts import Artifacts
from server.errors import HoneError
from server.settings import Settings
from server.store.session import Store
from server.store.tables import Cycle

if TYPE_CHECKING:
    from server.modeling import Base


class Unfit(HoneError):
    """The cycle cannot work on this record or this base model; the message says what it lacks."""

    code = "unfit"


class TooFewVotes(HoneError):
    """There is too little to train on, and more votes will mend it; the message is the why-not sentence."""

    code = "too_few_votes"


@dataclass(frozen=True, slots=True)
class Work:
    """What every step of one cycle is given."""

    cycle: Cycle
    rollout: str
    """The segment's policy for a version that passed: `gate` or `manual`."""
    folder: WorkDir
    store: Store
    artifacts: Artifacts
    tenure: Tenure
    watch: Watch
    settings: Settings
    _loaded: list[Base] = field(default_factory=list)

    @property
    def config(self) -> LearnerConfig:
        """The numbers that the cycle was begun with. Raises Unfit when another version of Hone wrote them."""
        values = {group: values for group, values in self.cycle.config.items() if group != "salt"}
        try:
            return LearnerConfig.from_dict(values)
        except (ValueError, TypeError) as error:
            raise Unfit(
                f"the cycle was begun by another version of Hone ({error}); ask for a new one"
            ) from error

    def result(self, step: str) -> dict[str, Any]:
        """What an earlier step left."""
        done = self.folder.result(step)
        assert done is not None, f"{step} comes first"
        found: dict[str, Any] = done["result"]
        return found

    def base(self) -> Base:
        """The base model, loaded at first need, once for all roles. Raises Unfit when it was changed under way."""
        if not self._loaded:
            import torch

            from server.modeling import load_base

            if self.config.ppo.threads:
                torch.set_num_threads(self.config.ppo.threads)
            self._loaded.append(
                load_base(self.settings.model, device=self.settings.device, dtype=self.settings.dtype)
            )
        base = self._loaded[0]
        begun = self.folder.result("collect")
        if begun and begun["result"]["base"]["hash"] != base.base_hash:
            raise Unfit("the base model was changed while the cycle was under way; ask for a new cycle")
        return base

    @contextmanager
    def bare_model(self) -> Iterator[tuple[Base, Any]]:
        """The base, and the PeftModel around it with nothing switched on; bare again afterwards.

        Every step begins with the same empty house and reads its adapters from files, so that it does not matter
        whether the steps before it ran in this process.
        """
        from server.modeling import new_adapter, use_adapter

        base = self.base()
        model = new_adapter(base.model, "idle", rank=1, alpha=1, seed=0)
        use_adapter(model, None, trainable=False)
        try:
            yield base, model
        finally:
            model.unload()
