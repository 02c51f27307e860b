"""Published folders: `adapters/<segment>/v000013`, `reward/v000007`. They appear whole or not at all, and never change.

A folder is staged beside the root, sealed (a manifest with the sha256 of every file), and then published: on a local
disk by fsync and rename, on an object store by uploading the manifest last, since a folder without one is not there.
Knows fsspec; knows no database, no tensors and nothing of what the files mean.

stage -> (the caller writes files) -> seal -> publish; fetch -> verify -> (the caller reads files)
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from server.errors import AdapterRejected, Conflict, Invalid, NotFound, Unavailable

MANIFEST = "manifest.json"
TMP = ".tmp"
BROKEN_AFTER_SECONDS = 24 * 3600.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FORBIDDEN = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt"}
"""Formats that can run code when they are loaded; weights are safetensors, always."""


class Artifacts:
    """The folders under one root: a local path, or any fsspec URL such as `s3://bucket/prefix`."""

    def __init__(self, url: str, *, cache: Path | None = None) -> None:
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._is_local = "file" in _protocols(self._files)
        home = Path(self._root) if self._is_local else cache or Path("data")
        self._staging = home / TMP
        self._cache = home if self._is_local else home / "fetched"

    def stage(self, relative: str) -> Path:
        """An empty folder to write into, that no other process works in."""
        self._forget_broken()
        name = _checked(relative).replace("/", "-")
        folder = self._staging / f"{name}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        return folder

    def seal(self, staged: Path, manifest: dict[str, Any]) -> None:
        """Write the manifest: what the caller says, and the sha256 of every file in the folder."""
        (staged / MANIFEST).unlink(missing_ok=True)
        files = {path.relative_to(staged).as_posix(): _sha256(path) for path in _files_in(staged)}
        for name in files:
            _refuse_code(name)
        text = json.dumps({**manifest, "files": files}, indent=1, sort_keys=True, ensure_ascii=False)
        (staged / MANIFEST).write_text(text + "\n", encoding="utf-8")

    def publish(self, staged: Path, relative: str) -> str:
        """Make a sealed folder appear under its name, whole; returns the sha256 of its manifest.

        Raises Conflict (`version_taken`) when something stands there already: a number is never used twice; and
        Unavailable when the store cannot be reached.
        """
        self.verify(staged)
        digest = _sha256(staged / MANIFEST)
        if self.exists(relative):
            raise Conflict(f"{relative} is already published", code="version_taken")
        if self._is_local:
            self._rename_into_place(staged, Path(self._root) / _checked(relative))
        else:
            self._upload(staged, relative)
            shutil.rmtree(staged)
        return digest

    def exists(self, relative: str) -> bool:
        """Raises Unavailable when the store cannot be reached."""
        path = f"{self._root}/{_checked(relative)}/{MANIFEST}"
        with self._reached():
            return bool(self._files.exists(path))

    def fetch(self, relative: str) -> Path:
        """The folder on this machine's disk, downloaded once when it lives elsewhere. Verify it before use.

        Raises NotFound, and Unavailable when the store cannot be reached.
        """
        if not self.exists(relative):
            raise NotFound(f"nothing is published at {relative}", code="unknown_version")
        local = self._cache / relative
        if self._is_local or (local / MANIFEST).exists():
            return local
        arriving = self.stage(relative)
        try:
            with self._reached():
                self._download(relative, arriving)
            self._rename_into_place(arriving, local)
        except OSError:
            if not (local / MANIFEST).exists():  # else another process has fetched the very same meanwhile
                raise
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
        return local

    async def fetch_async(self, relative: str) -> Path:
        """The same, from asyncio. Nobody waits for its thread: a store that has fallen silent holds no process."""
        found: Future[Path] = Future()
        found.set_running_or_notify_cancel()

        def work() -> None:
            try:
                found.set_result(self.fetch(relative))
            except BaseException as error:  # belongs to the caller
                found.set_exception(error)

        threading.Thread(target=work, name="artifacts-fetch", daemon=True).start()
        return await asyncio.wrap_future(found)

    def verify(self, folder: Path) -> dict[str, Any]:
        """The manifest of a folder whose every file is as it was sealed, and none besides; else AdapterRejected."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            sealed = dict(manifest["files"])
        except FileNotFoundError:
            raise AdapterRejected(f"{folder.name} has no {MANIFEST}") from None
        except (ValueError, KeyError, TypeError):
            raise AdapterRejected(f"{folder.name} has a broken {MANIFEST}") from None
        found = {path.relative_to(folder).as_posix(): path for path in _files_in(folder)}
        found.pop(MANIFEST)
        for name in sorted(found.keys() | sealed.keys()):
            _refuse_code(name)
            if name not in sealed:
                raise AdapterRejected(f"{folder.name} holds {name}, which its manifest does not list")
            if name not in found:
                raise AdapterRejected(f"{folder.name} lacks {name}")
            if _sha256(found[name]) != sealed[name]:
                raise AdapterRejected(
                    f"{name} in {folder.name} is not what was published: its checksum differs"
                )
        return dict(manifest)

    def _forget_broken(self) -> None:
        """Remove what killed processes left behind: untouched for so long that none can be at work in it."""
        for folder in self._staging.glob("*"):
            with suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > BROKEN_AFTER_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Whatever goes wrong on the way to an object store as Unavailable; a local disk's errors stay what they are.

        Each of fsspec's stores has errors of its own, without a common root.
        """
        try:
            yield
        except Exception as error:
            if self._is_local or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
                raise
            raise Unavailable(
                f"The artifacts cannot be reached: {type(error).__name__}: {error}",
                code="artifacts_unavailable",
            ) from error

    def _rename_into_place(self, staged: Path, target: Path) -> None:
        for path in _files_in(staged):
            _sync(path)
        for folder in {path.parent for path in _files_in(staged)} | {staged}:
            _sync(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(target)
        _sync(target.parent)

    def _download(self, relative: str, arriving: Path) -> None:
        remote = f"{self._root}/{relative}"
        for path in self._files.find(remote):
            target = arriving / Path(path).relative_to(Path(remote))
            target.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(path, str(target))

    def _upload(self, staged: Path, relative: str) -> None:
        names = sorted(path.relative_to(staged).as_posix() for path in _files_in(staged))
        names.remove(MANIFEST)
        with self._reached():
            for name in [*names, MANIFEST]:
                self._files.put_file(str(staged / name), f"{self._root}/{relative}/{name}")


def _protocols(files: Any) -> set[str]:
    protocol = files.protocol
    return {protocol} if isinstance(protocol, str) else set(protocol)


def _checked(relative: str) -> str:
    """A name made of plain parts only: it can neither climb out of the root nor name a hidden folder."""
    parts = relative.split("/")
    if not all(_NAME.fullmatch(part) and ".." not in part for part in parts):
        raise Invalid(f"{relative!r} is not a name for a published folder")
    return relative


def _files_in(folder: Path) -> Iterator[Path]:
    """Every file below `folder`, in order. A link is refused: it could point anywhere."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise AdapterRejected(f"{folder.name} holds a link: {path.relative_to(folder)}")
        if path.is_file():
            yield path


def _refuse_code(name: str) -> None:
    if Path(name).suffix in _FORBIDDEN or name.startswith("/") or ".." in Path(name).parts:
        raise AdapterRejected(f"{name} may not be part of a published folder")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
