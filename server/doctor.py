"""The doctor: looks at an installation and says in plain words what stands, what limps and what to do about it.

    settings -> checks, each on its own -> findings (ok | warn | fail)

It changes nothing, starts nothing and answers within a second, with or without torch. Only when asked to it loads the
base (`server.doctor_base`).
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from server.settings import Settings

MIB = 1024 * 1024
NO_ROOM = 256 * MIB
"""With less than this a database and one adapter may not fit any more."""
LITTLE_ROOM = 2048 * MIB
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    """It will run, but not as the operator may expect."""
    FAIL = "fail"
    """It will not run until this is mended."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `mend` says what to do; it is empty when there is nothing to do."""

    check: str
    level: Level
    says: str
    mend: str = ""


def examine(settings: Settings, *, load: bool = False) -> list[Finding]:
    """Every finding, in the order in which an installation comes to life; with `load` the base is tried, too."""
    # Imported here: the record's libraries are slow to load and the other checks do not need them.
    from server.doctor_record import check_record

    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        check_parts,
        check_model,
        check_folders,
        check_disk,
        check_port,
        check_admin_key,
        check_record,
    )
    if settings.engine == "vllm":
        from server.doctor_vllm import check_vllm

        checks = (*checks, check_vllm)
    if settings.engine == "local":
        checks = (*checks, check_forward if load else suggest_forward)
    return [finding for check in checks for finding in check(settings)]


def check_parts(settings: Settings) -> Iterator[Finding]:
    """Whether the libraries behind the chosen engine and the learner are installed."""
    if settings.engine == "local":
        yield _parts(
            "engine", ("torch", "transformers", "peft", "safetensors"), extra="local", level=Level.FAIL
        )
    if settings.engine == "vllm":
        yield _parts("engine", ("transformers", "jinja2"), extra="vllm", level=Level.FAIL)
    if settings.learner and settings.engine != "echo":
        # Beside vLLM the learner needs what the local engine brings; there it is part of the extra.
        tensors = ("torch", "peft") if settings.engine == "vllm" else ()
        yield _parts("learner", ("apscheduler", "matplotlib", *tensors), extra="learner", level=Level.WARN)
    if settings.resolved_artifacts_url.startswith("s3://"):
        yield _parts("artifacts", ("s3fs",), extra="s3", level=Level.FAIL)


def _parts(check: str, modules: tuple[str, ...], *, extra: str, level: Level) -> Finding:
    missing = [module for module in modules if find_spec(module) is None]
    if not missing:
        return Finding(check, Level.OK, f"{', '.join(modules)} installed")
    mend = f"pip install 'hone-chat[{extra}]'"
    if check == "engine":
        mend += ", or serve without a model: hone serve --engine echo"
    return Finding(check, level, f"not installed: {', '.join(missing)}", mend)


def check_model(settings: Settings) -> Iterator[Finding]:
    """Whether there is a base model to load or to train on, and a chat template to talk to it with."""
    if settings.engine == "echo":
        return
    folder = Path(settings.model).expanduser()
    if not folder.exists() and _looks_like_hub_name(settings.model):
        yield _hub_model(settings.model)
        return
    if not folder.is_dir():
        yield Finding(
            "model",
            Level.FAIL,
            f"there is no model at {folder}",
            "give a folder with config.json and *.safetensors, or a hub name: hone serve --model PATH_OR_NAME",
        )
        return
    weights = _weights(folder)
    yield weights
    if weights.level is Level.OK:
        yield _template(folder)


def _looks_like_hub_name(model: str) -> bool:
    return not model.startswith((".", "/", "~")) and model.count("/") <= 1 and "\\" not in model


def _hub_model(name: str) -> Finding:
    if find_spec("huggingface_hub") is not None:
        from huggingface_hub import try_to_load_from_cache

        try:
            if isinstance(try_to_load_from_cache(name, "config.json"), str):
                return Finding("model", Level.OK, f"{name} is in the local hub cache")
        except ValueError:
            return Finding(
                "model",
                Level.FAIL,
                f"{name!r} is neither a folder here nor a name the hub could know",
                "hone serve --model PATH_OR_NAME",
            )
    return Finding(
        "model",
        Level.WARN,
        f"there is no folder {name}; it will be looked for on the hub at start",
        "if you meant a folder, check the path; if not, the first start needs the network",
    )


def _weights(folder: Path) -> Finding:
    missing = [
        what
        for what, patterns in {
            "config.json": ("config.json",),
            "weights (*.safetensors)": ("*.safetensors",),
            "a tokenizer": ("tokenizer.json", "tokenizer.model", "vocab.*", "tokenizer_config.json"),
        }.items()
        if not any(next(folder.glob(pattern), None) for pattern in patterns)
    ]
    if not missing:
        return Finding("model", Level.OK, f"{folder} holds a model")
    says = f"{folder} is not a model: it lacks {' and '.join(missing)}"
    if next(folder.glob("*.bin"), None):
        return Finding(
            "model",
            Level.FAIL,
            f"{says}; *.bin weights are pickles, which can run code, and are never loaded",
            "save the model again with save_pretrained(…, safe_serialization=True)",
        )
    return Finding(
        "model", Level.FAIL, says, "copy the whole folder, or name another: hone serve --model PATH"
    )


def _template(folder: Path) -> Finding:
    own_file = any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json"))
    described = folder / "tokenizer_config.json"
    if own_file or (described.exists() and '"chat_template"' in described.read_text(errors="replace")):
        return Finding("template", Level.OK, "the model brings its chat template")
    return Finding(
        "template",
        Level.WARN,
        "the model has no chat template; plain 'User: … Assistant: …' is used",
        "fine for a base model; otherwise add the template it was tuned with as chat_template.jinja",
    )


def suggest_forward(settings: Settings) -> Iterator[Finding]:
    """That there is more to know, for whoever has the seconds."""
    yield Finding(
        "forward",
        Level.OK,
        "not tried; hone doctor --load loads the base and says how it is run and what it needs",
    )


def check_forward(settings: Settings) -> Iterator[Finding]:
    """Which forward runs the base here, unless it was already said that it cannot."""
    before = [*check_parts(settings), *check_model(settings)]
    if all(finding.level is not Level.FAIL for finding in before):
        from server.doctor_base import check_base

        yield from check_base(settings)


def check_folders(settings: Settings) -> Iterator[Finding]:
    """Whether the data directory and, where local, the adapters directory can be written."""
    yield _writable("data directory", settings.data_dir)
    if "://" not in settings.resolved_artifacts_url:
        yield _writable("adapters directory", Path(settings.resolved_artifacts_url) / "adapters")


def _writable(check: str, folder: Path) -> Finding:
    """By writing: permission bits do not know of read-only mounts, quotas or root."""
    there = _nearest(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".doctor-"):
            pass
    except OSError as error:
        if there.exists() and not there.is_dir():
            return Finding(
                check,
                Level.FAIL,
                f"{there} is a file, not a directory",
                f"move it away: mv {there} {there}.old",
            )
        # On a read-only mount no owner may write.
        ours = f"give it to this user (chown {_user_name()} {there})"
        first = "mount it for writing" if error.errno == errno.EROFS else ours
        return Finding(
            check,
            Level.FAIL,
            f"{there} cannot be written ({error.strerror})",
            f"{first}, or choose another: --data-dir",
        )
    return Finding(
        check, Level.OK, f"{folder} can be written" if there == folder else f"{folder} can be made"
    )


def _user_name() -> str:
    return str(os.geteuid()) if hasattr(os, "geteuid") else "this user"


def _nearest(folder: Path) -> Path:
    """The folder itself, or the closest parent that exists."""
    folder = folder.absolute()
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder


def check_disk(settings: Settings) -> Iterator[Finding]:
    """Whether there is room for votes and adapters to come."""
    there = _nearest(settings.data_dir)
    usage = shutil.disk_usage(there)
    says = (
        f"{usage.free / 1024 / MIB:.1f} GiB free at {there}"
        if usage.free > 1024 * MIB
        else f"{usage.free // MIB} MiB free at {there}"
    )
    mend = "free some space, or move the data directory: --data-dir"
    if usage.free < NO_ROOM:
        yield Finding(
            "disk", Level.FAIL, f"nearly full: {says}; votes will be refused once nothing fits", mend
        )
    elif usage.free < LITTLE_ROOM:
        yield Finding("disk", Level.WARN, f"getting full: {says}", mend)
    else:
        yield Finding("disk", Level.OK, says)


def check_port(settings: Settings) -> Iterator[Finding]:
    """Whether the server could listen where it is told to."""
    where = f"{settings.host}:{settings.port}"
    try:
        bind(settings.host, settings.port).close()
    except socket.gaierror:
        yield Finding(
            "port", Level.FAIL, f"{settings.host} is not an address of this machine", "choose another: --host"
        )
    except OSError as error:
        yield _why_not_bound(error, settings, where)
    else:
        yield Finding("port", Level.OK, f"{where} is free")


def _why_not_bound(error: OSError, settings: Settings, where: str) -> Finding:
    if error.errno == errno.EADDRINUSE:
        if settings.answering_url and settings.answering_url.rstrip("/").endswith(f":{settings.port}"):
            return Finding("port", Level.OK, f"Hone of this data directory is at {settings.answering_url}")
        return Finding(
            "port",
            Level.FAIL,
            f"{where} is taken by another program",
            f"stop it, or choose another port: hone serve --port {settings.port % 65535 + 1}",
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return Finding(
            "port", Level.FAIL, f"this user may not listen on {where}", "choose a port above 1023: --port"
        )
    return Finding(
        "port", Level.FAIL, f"cannot listen on {where}: {error.strerror}", "choose another: --host, --port"
    )


def bind(host: str, port: int) -> socket.socket:
    """A bound, not yet listening socket, as the server takes it. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            # A port in TIME_WAIT after a restart is free; one that is listened on is not.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def check_admin_key(settings: Settings) -> Iterator[Finding]:
    """Whether the admin key, where there is one, is for this user's eyes only."""
    path = settings.admin_key_path
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if is_open(mode):
        yield Finding(
            "admin key",
            Level.FAIL,
            f"{path} can be read by others (mode {stat.S_IMODE(mode):04o})",
            f"chmod 600 {path}; if others were on this machine, make a new key and revoke this one",
        )
    else:
        yield Finding("admin key", Level.OK, f"{path} is readable by its owner only")


def is_open(mode: int) -> bool:
    """Whether anybody but the owner may touch a file of this mode."""
    return os.name == "posix" and bool(mode & (stat.S_IRWXG | stat.S_IRWXO))
