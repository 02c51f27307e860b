"""Two tastes that need no world: for real prompts and any base model. `hone simulate --taste FILE.py:FUNCTION`."""

from typing import Any


def brief(messages: list[dict[str, Any]], reply: str) -> float:
    """Likes short replies that end properly."""
    words = reply.split()
    if not words:
        return -3.0
    return -0.1 * len(words) + (1.0 if reply.rstrip().endswith((".", "!", "?")) else 0.0)


def lively(messages: list[dict[str, Any]], reply: str) -> float:
    """Likes exclamations and questions back; dislikes repeated words."""
    words = reply.lower().split()
    if not words:
        return -3.0
    repeats = 1.0 - len(set(words)) / len(words)
    return min(reply.count("!") + reply.count("?"), 4) - 4.0 * repeats
