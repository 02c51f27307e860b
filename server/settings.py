"""Settings: read once from `HONE_*` variables and options, then passed down. No module keeps a global one."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

DEMO_MODEL = Path(__file__).parent / "demo_model"
DATA_DIR = Path("data")
OF_THE_MACHINE = frozenset({"device", "threads", "learner_threads"})
"""Settings that say how to use this computer, and nothing of which installation is meant or what it does."""


class Settings(BaseSettings):
    """One installation's settings. Every field may be given as `HONE_<NAME>`."""

    model_config = SettingsConfigDict(
        env_prefix="HONE_",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
        extra="ignore",
        frozen=True,
    )

    data_dir: Path = DATA_DIR
    """Where the database, the adapters and `admin.key` live."""
    database_url: str = ""
    """SQLAlchemy URL; empty means SQLite at `<data_dir>/hone.db`. PostgreSQL: `postgresql+psycopg://…`."""
    artifacts_url: str = ""
    """Where published adapters live: a path or an fsspec URL (`s3://bucket/prefix`); empty: `<data_dir>`."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs a key first."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    trusted_proxies: str = ""
    """Comma-separated addresses whose `X-Forwarded-For` is believed."""
    cors_origins: str = ""
    """Comma-separated origins whose pages may call the API from a browser; `*` for any."""
    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    """Largest request body; more is answered 413."""
    key_rate: float = Field(default=5000, ge=0)
    """Requests a second that one API key may make (twice that in a burst); 0 sets no limit."""
    session_rate: float = Field(default=20, ge=0)
    """Requests a second that one session token may make (twice that in a burst); 0 sets no limit."""

    model: str = str(DEMO_MODEL)
    """Base model: a local directory or a hub name; any decoder-only checkpoint."""
    engine: Literal["local", "vllm", "echo"] = "local"
    """Which engine answers: this process, vLLM servers, or nothing but an echo."""
    vllm_url: str = ""
    """vLLM servers that serve the base model, with commas: `http://gpu1:8000,http://gpu2:8000`."""
    vllm_key: SecretStr = SecretStr("")
    """What those servers were given as `--api-key`; empty: they ask for none."""
    vllm_adapters: str = ""
    """Where those servers see the adapters directory (`<artifacts>/adapters`); empty: at the same path as here."""
    device: str = "auto"
    """`auto` takes CUDA when it is there, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights' type; `auto` is bfloat16 on CUDA, in vLLM, and for large weights on a CPU that multiplies in it."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of the engine; 0 lets torch choose."""
    max_running: int = Field(default=32, ge=1)
    """Replies generated at the same time, by each vLLM server where there are any."""
    max_waiting: int = Field(default=256, ge=0)
    """Replies that may wait for a place; more are answered 429. Users take turns; once more than half of the queue is
    full, one of them may hold at most half of it."""
    reply_seconds: float = Field(default=300, ge=0)
    """Longest time from a request to the end of its reply, waiting included; then it is cut off (504, or an error in
    mid-stream) and what was written is kept. 0 sets no limit."""
    grace_seconds: float = Field(default=15, ge=0)
    """How long a server that was asked to end (SIGTERM, Ctrl-C) lets running replies go on; asked again, it ends at
    once. Whatever starts and stops it must allow some seconds more before it kills."""
    cache_tokens: int = Field(default=0, ge=0)
    """Positions of keys and values that all running replies share; 0: as many as half of the memory holds that is free
    once the base is loaded."""
    prefix_mib: int | None = Field(default=None, ge=0)
    """Memory for keys and values of finished replies, so that a next turn need not be read from its beginning; unset:
    64 MiB or eight whole contexts, whichever is more, within an eighth of what running replies may take."""
    keep_resident: int = Field(default=3, ge=1)
    """How many earlier versions stay loaded, so that a rollback is instant."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest reply when the request names none."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Temperature when the request names none."""
    follow_seconds: float = Field(default=1.0, gt=0)
    """How often the promotion log is read for changes made by other processes."""

    learner: bool = True
    """Whether `hone serve` starts the learner beside it."""
    min_labels: int = Field(default=200, ge=1)
    """Fewer live votes than this in a segment: nothing is trained."""
    train_every_votes: int = Field(default=300, ge=1)
    """A cycle starts when this many new votes have come in …"""
    train_every_hours: float = Field(default=24.0, gt=0)
    """… or when this long has passed since the last cycle and there is at least one new vote."""
    learner_poll_seconds: float = Field(default=3.0, gt=0)
    """How often the learner looks for new votes and for cycles asked for."""
    learner_lease_seconds: float = Field(default=30.0, gt=0)
    """How long a learner that fell silent keeps its right to work; it shows signs of life six times as often."""
    learner_threads: int = Field(default=0, ge=0)
    """CPU threads of the learner; 0 takes all cores but one, which is left to replies."""
    profile: Literal["default", "fast", "tiny"] = "default"
    """Size of the learner's work: `fast` trains less and judges as strictly, `tiny` is for tests and tiny worlds."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severity that is logged. Message texts are never logged at INFO or above."""
    log_json: bool = False
    """One JSON object per log line."""

    @classmethod
    def apart(cls, data_dir: Path) -> Settings:
        """Another installation in `data_dir`: all that this shell's `HONE_*` count for is how to use the machine."""
        given: dict[str, Any] = {
            name: field.default for name, field in cls.model_fields.items() if name not in OF_THE_MACHINE
        }
        return cls(**given | {"data_dir": data_dir})

    @property
    def resolved_database_url(self) -> str:
        """`database_url`, or SQLite inside the data directory."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'hone.db'}"

    @property
    def resolved_artifacts_url(self) -> str:
        """`artifacts_url`, or the data directory."""
        return self.artifacts_url or str(self.data_dir.absolute())

    @property
    def adapters_dir(self) -> Path:
        """The adapters directory on this machine's disk; of an object store, the copies that were fetched."""
        url = self.resolved_artifacts_url.removeprefix("file://")
        home = self.data_dir / "fetched" if "://" in url else Path(url).expanduser()
        return Path(os.path.abspath(home)) / "adapters"

    @property
    def vllm_urls(self) -> list[str]:
        """The vLLM servers, one by one."""
        return [url.strip() for url in self.vllm_url.split(",") if url.strip()]

    @property
    def admin_key_path(self) -> Path:
        """Where the first start leaves the admin key (mode 0600)."""
        return self.data_dir / "admin.key"

    @property
    def first_key_command(self) -> str:
        """What makes a key before anybody could ask the server for one."""
        return hone_command(
            "keys create --client NAME --scope admin --scope operator", data_dir=self.data_dir
        )

    @property
    def address_path(self) -> Path:
        """Where a running server leaves its URL and process id."""
        return self.data_dir / "server.json"

    @property
    def answering_url(self) -> str | None:
        """The URL that the last server of this data directory left behind; whether it answers is another matter."""
        try:
            return str(json.loads(self.address_path.read_text())["url"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def environment(self, *, apart: bool = False) -> dict[str, str]:
        """This process's environment, with every setting that was given, for a child that shall see the same.

        `apart` leaves out this shell's own `HONE_*`, options of commands (`HONE_SEGMENT`) among them.
        """
        inherited = {
            name: value for name, value in os.environ.items() if not (apart and name.startswith("HONE_"))
        }
        given = self.model_dump(mode="json", include=self.model_fields_set)
        if "vllm_key" in given:  # a dump shows stars
            given["vllm_key"] = self.vllm_key.get_secret_value()
        return inherited | {
            f"HONE_{name.upper()}": str(value) for name, value in given.items() if value is not None
        }


def hone_command(words: str, *, data_dir: Path) -> str:
    """`hone WORDS` as an operator must type it to reach this data directory."""
    if data_dir.absolute() == DATA_DIR.absolute():
        return f"hone {words}"
    return f"hone {words} --data-dir {shlex.quote(str(data_dir))}"
