"""What the server counts about itself, in Prometheus' words. It counts; it never decides.

One `Metrics` per app, with a registry of its own, so that two apps in one process do not share numbers.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Every series of the server. Labels hold routes, versions and kinds: never a name, an id or a text."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "hone_requests", "Finished requests.", ["method", "route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "hone_request_seconds",
            "Time from a request's first byte to its answer's last.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            "hone_first_token_seconds",
            "Time from opening a turn to its first token.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter("hone_prompt_tokens", "Prompt tokens answered.", registry=self.registry)
        self.reply_tokens = Counter(
            "hone_reply_tokens", "Reply tokens written.", ["version"], registry=self.registry
        )
        self.replies = Counter(
            "hone_replies", "Replies ended.", ["version", "purpose", "state"], registry=self.registry
        )
        self.votes = Counter(
            "hone_feedback", "Feedback stored.", ["kind", "value", "version"], registry=self.registry
        )
        self.swap_seconds = Histogram(
            "hone_swap_seconds",
            "Time from seeing a promotion to serving it.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.load_failures = Counter(
            "hone_load_failures", "Versions that could not be loaded.", registry=self.registry
        )
        self.serving = Gauge(
            "hone_serving_version", "Version that answers a segment.", ["segment"], registry=self.registry
        )
        self.running = Gauge("hone_running_replies", "Replies being written.", registry=self.registry)
        self.waiting = Gauge("hone_waiting_replies", "Replies waiting for a place.", registry=self.registry)

        self.rows = Gauge(
            "hone_decoder_rows", "Replies that the decoder itself holds.", registry=self.registry
        )
        self.held_bytes = Gauge(
            "hone_held_bytes", "Keys and values that the engine keeps in memory.", registry=self.registry
        )

    def page(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
