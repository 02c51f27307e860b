"""The reward model as served: features of a response on the one shared base, heads that read them, one score."""

from server.scoring.codebook import Book, CodeBook, sizes
from server.scoring.features import (
    CODES_SHARE,
    DEPTHS,
    PLAIN,
    PLAIN_SHARE,
    STATES_SHARE,
    feature_scale,
    features,
    fixed_count,
    fluency,
    make_code_book,
)
from server.scoring.reward_model import CARD, HEADS, Head, RewardModel, Scores

__all__ = [
    "CARD",
    "CODES_SHARE",
    "DEPTHS",
    "HEADS",
    "PLAIN",
    "PLAIN_SHARE",
    "STATES_SHARE",
    "Book",
    "CodeBook",
    "Head",
    "RewardModel",
    "Scores",
    "feature_scale",
    "features",
    "fixed_count",
    "fluency",
    "make_code_book",
    "sizes",
]
