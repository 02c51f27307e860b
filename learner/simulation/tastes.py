"""What a simulated person likes: functions from a conversation and a reply to a number of any scale.

Knows nothing of who holds a taste or how noisily they vote; `raters` does. What a taste sees of a reply is what
the world's parser sees.
"""

from __future__ import annotations

import importlib.util
import math
import random
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from types import ModuleType

from learner.simulation.parser import Features
from learner.simulation.world import World
from server.errors import Invalid

Taste = Callable[[Sequence[Mapping[str, str]], str], float]
"""(messages that end in a user turn, reply) -> how much it is liked; higher is better."""

_Liking = Callable[[Features], float]

_LARGEST = 1e300
"""Of a score: differences and sums of these are still numbers."""
_SEED_DIGITS = 100


def _faults(seen: Features) -> float:
    """What everybody dislikes, far more than any style."""
    return (
        3.0 * (not seen.on_topic) + 2.5 * (not seen.well_formed) + 2.0 * seen.repeats + 2.5 * seen.wrong_fact
    )


def _friendly_brief(seen: Features) -> float:
    return 1.5 * seen.warm - 1.5 * seen.curt + 0.3 * seen.emoji - 0.5 * seen.sentences - 0.02 * seen.words


def _bullets_thorough(seen: Features) -> float:
    listed = 2.0 if seen.bullets else 0.0
    return listed + 0.6 * min(seen.sentences, 5) - 0.4 * seen.hedged + 0.01 * min(seen.words, 60)


def _remembers(seen: Features) -> float:
    recalled = {True: 2.5, False: -2.5, None: 0.0}[seen.recalls_fact]
    return (
        recalled
        + 2.0 * bool(seen.names_user)
        + 0.4 * seen.warm
        + 0.2 * seen.question_back
        - 0.01 * seen.words
    )


BUILT_IN: dict[str, _Liking] = {
    "friendly-brief": _friendly_brief,
    "bullets-thorough": _bullets_thorough,
    "remembers": _remembers,
}

_AXES: dict[str, _Liking] = {
    "warmth": lambda seen: float(seen.warm) - float(seen.curt),
    "length": lambda seen: (min(seen.sentences, 6) - 2.7) / 1.4,
    "bullets": lambda seen: float(seen.bullets > 0),
    "hedging": lambda seen: float(seen.hedged),
    "questions": lambda seen: float(seen.question_back),
    "emoji": lambda seen: float(seen.emoji),
    "memory": lambda seen: bool(seen.names_user) + {True: 1.0, False: -1.0, None: 0.0}[seen.recalls_fact],
    "flattery": lambda seen: float(seen.flatters),
    "assumptions": lambda seen: float(seen.assumes),
    "disclaimers": lambda seen: float(seen.disclaims),
}


def _random_liking(seed: int) -> _Liking:
    """Two to four axes, each liked or disliked; and a slight one for length, so that few replies tie."""
    rng = random.Random(f"taste:{seed}")
    chosen = rng.sample(sorted(_AXES), rng.choice((2, 3, 4)))
    weights = {axis: rng.choice((-1, 1)) * rng.uniform(0.8, 1.6) for axis in chosen}
    wordy = rng.choice((-0.01, 0.01))
    return lambda seen: (
        sum(w * _AXES[axis](seen) for axis, w in weights.items()) + wordy * min(seen.words, 60)
    )


def load_taste(spec: str) -> Taste:
    """The taste named by a built-in name, `random:SEED` or `FILE.py:FUNCTION`; Invalid says what is wrong."""
    if spec in BUILT_IN:
        return _of_features(BUILT_IN[spec])
    if match := re.fullmatch(r"random:(-?\d+)", spec):
        if len(match.group(1)) > _SEED_DIGITS:
            raise _invalid(f"The seed of a random taste has at most {_SEED_DIGITS} digits.")
        return _of_features(_random_liking(int(match.group(1))))
    path, colon, function = spec.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path), function)
    known = ", ".join(BUILT_IN)
    raise _invalid(f"No taste is called {spec!r}: use {known}, random:SEED or FILE.py:FUNCTION.")


def _invalid(message: str) -> Invalid:
    return Invalid(message, code="unknown_taste", param="taste")


def _of_features(liking: _Liking) -> Taste:
    world = World()

    def taste(messages: Sequence[Mapping[str, str]], reply: str) -> float:
        seen = world.parse(messages, reply)
        return liking(seen) - _faults(seen)

    return taste


def _from_file(path: Path, function: str) -> Taste:
    if not path.is_file():
        raise _invalid(f"There is no file {path} to take the taste {function!r} from.")
    source = importlib.util.spec_from_file_location(f"taste_{path.stem}", path)
    assert source is not None
    assert source.loader is not None
    module = importlib.util.module_from_spec(source)
    try:
        with _importable(module, path.parent):
            source.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a stranger's file: whatever it raises is said in one line
        raise _invalid(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise _invalid(f"{path} has no function {function!r}.")
    return _checked(found, f"{path}:{function}")


@contextmanager
def _importable(module: ModuleType, folder: Path) -> Iterator[None]:
    """As for a script: it finds itself by name, as dataclasses ask, and imports what lies beside it."""
    beside = str(folder.absolute())
    sys.modules[module.__name__] = module
    sys.path.insert(0, beside)
    try:
        yield
    except BaseException:
        sys.modules.pop(module.__name__, None)
        raise
    finally:
        sys.path.remove(beside)


def _checked(found: Callable[..., object], name: str) -> Taste:
    """The stranger's function, with a clear word when it fails or answers no number."""

    def taste(messages: Sequence[Mapping[str, str]], reply: str) -> float:
        try:
            score = found([dict(message) for message in messages], reply)
            number = float(score) if isinstance(score, Real) else math.nan
        except (Exception, SystemExit) as error:  # as when it is loaded
            raise _invalid(f"{name} failed: {type(error).__name__}: {error}") from error
        if abs(number) <= _LARGEST:
            return number
        raise _invalid(
            f"{name} must answer a finite number, {_LARGEST:g} at most; it answered {reprlib.repr(score)}."
        )

    return taste
