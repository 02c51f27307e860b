"""A write that returned is on disk, one that failed leaves nothing, and neighbours in a batch do not feel it."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError, DBAPIError
from sqlmodel import Session

from server.errors import NotFound, SetupError, Unavailable
from server.store import keys, migrate, session
from server.store.session import Store, open_store
from server.store.tables import Client


def names(store: Store) -> set[str]:
    return store.read(lambda s: set(s.connection().execute(text("select name from client")).scalars()))


def pragma(store: Store, name: str, *, write: bool) -> Any:
    def work(s: Session) -> Any:
        return s.connection().exec_driver_sql(f"PRAGMA {name}").scalar()

    return store.write(work) if write else store.read(work)


def test_sqlite_is_set_up_to_lose_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'hone.db'}"
    migrate.upgrade(url)
    store = open_store(url)
    for write in (True, False):
        assert pragma(store, "journal_mode", write=write) == "wal"
        assert pragma(store, "synchronous", write=write) == 2, "FULL: each commit is synced"
        assert pragma(store, "foreign_keys", write=write) == 1
        assert pragma(store, "busy_timeout", write=write) >= 5000
        assert pragma(store, "query_only", write=write) == (0 if write else 1)
    store.close()


def test_a_failing_work_leaves_nothing_and_its_neighbours_stay(store: Store) -> None:
    def work(number: int) -> Any:
        def write(s: Session) -> int:
            keys.ensure_client(s, f"client {number}")
            if number % 3 == 0:
                raise NotFound("no")
            return number

        return write

    async def crowd() -> list[Any]:
        return await asyncio.gather(*(store.write_async(work(i)) for i in range(30)), return_exceptions=True)

    answers = asyncio.run(crowd())
    assert [a for a in answers if not isinstance(a, NotFound)] == [i for i in range(30) if i % 3]
    assert names(store) == {f"client {i}" for i in range(30) if i % 3}


def test_a_value_that_the_database_refuses_fails_alone(store: Store) -> None:
    """One caller's impossible value took everybody's votes of the same commit with it."""
    refused = {"sqlite": "select zeroblob(2000000001)", "postgresql": "select 1 / 0"}[store.dialect]

    def work(number: int) -> Any:
        def write(s: Session) -> int:
            keys.ensure_client(s, f"client {number}")
            if number == 3:
                s.connection().execute(text(refused)).all()
            return number

        return write

    async def crowd() -> list[Any]:
        return await asyncio.gather(*(store.write_async(work(i)) for i in range(9)), return_exceptions=True)

    answers = asyncio.run(crowd())
    assert isinstance(answers[3], DataError)
    assert [answer for answer in answers if not isinstance(answer, DataError)] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert names(store) == {f"client {i}" for i in range(9) if i != 3}


def test_works_that_wait_together_share_one_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    transaction = Store._transaction

    def counted(self: Store, jobs: list[Any]) -> None:
        sizes.append(len(jobs))
        transaction(self, jobs)

    monkeypatch.setattr(Store, "_transaction", counted)
    entered, gate = threading.Event(), threading.Event()

    def slow(s: Session) -> None:
        entered.set()
        assert gate.wait(10)

    async def crowd() -> None:
        first = asyncio.ensure_future(store.write_async(slow))
        await asyncio.to_thread(entered.wait, 10)
        rest = [asyncio.ensure_future(store.write_async(lambda s: None)) for _ in range(50)]
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(first, *rest)

    asyncio.run(crowd())
    assert sizes == [1, 50]


def test_nobody_is_answered_before_the_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that fails is an error for everybody in it, and nothing of it can be read."""

    def fail(self: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sqlalchemy.engine.Connection.commit", fail)

    async def crowd() -> list[Any]:
        works = [lambda s, n=n: keys.ensure_client(s, f"c{n}") for n in range(5)]
        return await asyncio.gather(*map(store.write_async, works), return_exceptions=True)

    answers = asyncio.run(crowd())
    assert {type(answer) for answer in answers} == {Unavailable}
    assert {answer.code for answer in answers} == {"storage_full"}
    assert answers[0].retry_after > 0
    monkeypatch.undo()
    assert names(store) == set()


def test_a_full_disk_is_said_and_passes(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'hone.db'}"
    migrate.upgrade(url)
    store = open_store(url)
    pages = pragma(store, "page_count", write=True)
    store.write(lambda s: keys.ensure_client(s, "before"))
    pragma(store, f"max_page_count={pages + 1}", write=True)
    with pytest.raises(Unavailable) as full:
        store.write(lambda s: keys.ensure_client(s, "x" * 100_000))
    assert full.value.code == "storage_full"
    pragma(store, f"max_page_count={pages + 1000}", write=True)
    store.write(lambda s: keys.ensure_client(s, "after"))
    assert names(store) == {"before", "after"}
    store.close()


def test_a_reader_cannot_write(store: Store) -> None:
    with pytest.raises((Unavailable, DBAPIError)):
        store.read(lambda s: keys.ensure_client(s, "sneaky"))
    assert names(store) == set()


def test_a_cancelled_caller_does_not_disturb_the_writer(store: Store) -> None:
    async def leave() -> None:
        task = asyncio.ensure_future(store.write_async(lambda s: keys.ensure_client(s, "left")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await store.write_async(lambda s: keys.ensure_client(s, "stayed"))

    asyncio.run(leave())
    assert "stayed" in names(store)


def test_two_who_make_the_same_row_at_once_both_succeed(store: Store, url: str) -> None:
    """The one that loses the race is run again and finds the other's row."""
    other = Store(url)
    tries = 0

    def racing(s: Session) -> str:
        nonlocal tries
        tries += 1
        row = Client(id=f"client_{tries}", name="shared", created_at=keys.now())
        if tries > 1:
            return keys.ensure_client(s, "shared").id
        s.add(row)
        return row.id

    theirs = other.write(lambda s: keys.ensure_client(s, "shared").id)
    assert store.write(racing) == theirs
    assert tries == 2
    other.close()


def test_a_closed_store_refuses_and_loses_nothing_it_took(store: Store) -> None:
    async def crowd() -> None:
        tasks = [
            asyncio.ensure_future(store.write_async(lambda s, n=n: keys.ensure_client(s, f"c{n}")))
            for n in range(20)
        ]
        await asyncio.sleep(0)
        await asyncio.to_thread(store.close)
        await asyncio.gather(*tasks)

    url = store.url
    asyncio.run(crowd())
    with pytest.raises(Unavailable):
        store.write(lambda s: None)
    store.close()
    again = open_store(url)
    assert len(names(again)) == 20
    again.close()


def test_another_process_holding_the_lock_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hone.db"
    migrate.upgrade(f"sqlite:///{path}")
    monkeypatch.setattr(session, "BUSY_SECONDS", 0.05)
    store = open_store(f"sqlite:///{path}")
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.5, lambda: other.execute("COMMIT"))
    timer.start()
    store.write(lambda s: keys.ensure_client(s, "patient"))
    timer.join()
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(session, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(Unavailable) as away:
        store.write(lambda s: keys.ensure_client(s, "too long"))
    assert away.value.code == "database_unavailable"
    other.close()
    store.close()


def test_a_killed_process_keeps_every_write_that_had_returned(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'hone.db'}"
    migrate.upgrade(url)
    program = f"""
from server.store import keys
from server.store.session import open_store
store = open_store({url!r})
for n in range(10**6):
    store.write(lambda s: keys.ensure_client(s, f"c{{n}}"))
    print(n, flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    while int(child.stdout.readline()) < 50:
        pass
    child.kill()
    rest = child.stdout.read().split()
    child.wait()
    child.stdout.close()
    last = int(rest[-1]) if rest else 50
    store = open_store(url)
    assert names(store) >= {f"c{n}" for n in range(last + 1)}
    store.close()


def test_a_url_that_cannot_work_is_refused_plainly() -> None:
    for url in ("sqlite://", "mysql://x/y", "not a url"):
        with pytest.raises(SetupError):
            open_store(url, check=False)
