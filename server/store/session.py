"""The one way into the database: short transactions, and a write that has returned is on disk.

    write: callers -> queue -> one writer thread -> [BEGIN, a savepoint per work, COMMIT] -> answers
    read:  a read-only session of the caller's own, beside the writer

All writes of a process pass through one thread, which takes whatever has gathered since its last commit into one
transaction: one sync pays for many votes, and a work that fails is undone alone. It knows no noun of the record.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.pool import QueuePool
from sqlmodel import Session

from server.errors import SetupError, Unavailable
from server.store.troubles import is_locked, lost_race, plain_errors, translate

log = logging.getLogger(__name__)
T = TypeVar("T")
Work = Callable[[Session], T]

MOST_PER_COMMIT = 256
"""Works that share one commit."""
BUSY_SECONDS = 5.0
"""How long SQLite itself waits for another process's write lock."""
PATIENCE_SECONDS = 20.0
"""How long a batch is tried again while the database is locked."""
TRIES = 3
"""How often a work that lost a race (deadlock, serialization, unique row) is run."""
READERS = 8


class Job(Generic[T]):
    """A work on its way through the writer, and who waits for it."""

    __slots__ = ("error", "loop", "result", "waiter", "work")

    def __init__(self, work: Work[T], loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.work = work
        self.loop = loop
        self.waiter: Any = loop.create_future() if loop else Future()
        self.result: T | None = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        """Tell the waiter; one that went away (a cancelled task) is not told."""
        if self.waiter.done():
            return
        if self.error is not None:
            self.waiter.set_exception(self.error)
        else:
            self.waiter.set_result(self.result)


class Undone(Exception):
    """A work's failure took the whole transaction with it: its neighbours must be run again."""


class Store:
    """One per process. `write` returns after the commit; `work` may be run again, so it must not act outside."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._reading = _engine(url, readonly=True)
        self.dialect = self._reading.dialect.name
        self._writing = _engine(url, readonly=False)
        self._queue: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._door = threading.Lock()
        self._closed = False
        self._writer = threading.Thread(target=self._run, name="store-write", daemon=True)
        self._writer.start()

    def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction; its result is on disk. Raises what `work` raises, or Unavailable."""
        assert threading.current_thread() is not self._writer, "a work must not wait for another one"
        job = Job(work)
        self._enqueue(job)
        result: T = job.waiter.result()
        return result

    async def write_async(self, work: Work[T]) -> T:
        """The same, from asyncio. A caller that is cancelled meanwhile does not undo it."""
        job = Job(work, asyncio.get_running_loop())
        self._enqueue(job)
        result: T = await job.waiter
        return result

    def read(self, work: Work[T]) -> T:
        """Run `work` on one consistent state of the database, which it cannot change."""
        with plain_errors(), self._reading.connect() as connection, _session(connection) as session:
            return work(session)

    async def read_async(self, work: Work[T]) -> T:
        """The same, from asyncio."""
        if self._closed:
            raise _closed()
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read, work)

    def close(self) -> None:
        """Finish what was asked for, then let go of the database. May be called twice."""
        with self._door:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._writer.join()
        self._readers.shutdown()
        self._reading.dispose()
        self._writing.dispose()

    def _enqueue(self, job: Job[Any]) -> None:
        with self._door:
            if self._closed:
                raise _closed()
            self._queue.put(job)

    # --- the writer thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            jobs, last = self._gather(first)
            try:
                self._commit(jobs)
            except BaseException as error:
                for job in jobs:
                    job.result, job.error = None, error
                if not isinstance(error, Unavailable):
                    log.exception("a batch of writes failed")
            _settle(jobs)
            if last:
                return

    def _gather(self, first: Job[Any]) -> tuple[list[Job[Any]], bool]:
        """Whatever has come in by now, and whether the end was among it."""
        jobs = [first]
        while len(jobs) < MOST_PER_COMMIT:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return jobs, True
            jobs.append(following)
        return jobs, False

    def _commit(self, jobs: list[Job[Any]]) -> None:
        """All jobs in one commit; those that lost a race once more, each by itself."""
        try:
            self._transaction(jobs)
        except Undone:
            alone = jobs
        except DBAPIError as error:
            if not lost_race(error):
                raise
            alone = jobs
        else:
            alone = [job for job in jobs if isinstance(job.error, IntegrityError) or lost_race(job.error)]
        for job in alone:
            self._alone(job)

    def _alone(self, job: Job[Any]) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                self._transaction([job])
            except Undone:
                pass
            except DBAPIError as error:
                job.result, job.error = None, error
            except Exception as error:
                job.result, job.error = None, error
                return
            if not isinstance(job.error, IntegrityError) and not lost_race(job.error):
                return
            time.sleep(0.01 * attempt)
        if isinstance(job.error, DBAPIError):
            job.error = translate(job.error)

    def _transaction(self, jobs: list[Job[Any]]) -> None:
        """One transaction. Afterwards each job has its result or its own error; whatever raises is about all."""
        with plain_errors(keep=lost_race), self._begun() as connection:
            for job in jobs:
                _run_job(connection, job)
            connection.commit()

    def _connect(self) -> Connection:
        connection = self._writing.connect()
        try:
            connection.begin()
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _begun(self) -> Iterator[Connection]:
        """A connection that holds the write lock; waits for other processes. Rolls back unless committed."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                connection = self._connect()
                break
            except DBAPIError as error:
                if not is_locked(error) or time.monotonic() > give_up:
                    raise
        with connection:
            yield connection


def _run_job(connection: Connection, job: Job[Any]) -> None:
    """One work within its savepoint. Raises only what ends the whole transaction."""
    job.result = job.error = None
    savepoint(connection, "SAVEPOINT work")
    try:
        with _session(connection) as session:
            job.result = job.work(session)
            session.flush()
    except (IntegrityError, DataError) as error:  # what it wrote is at fault; others' works are not
        job.error = error
    except DBAPIError:
        raise
    except Exception as error:
        job.error = error
    if job.error is not None:
        job.result = None
        if not connection.in_transaction():  # a failed flush rolls back all, by the session's own rules
            raise Undone from job.error
        savepoint(connection, "ROLLBACK TO SAVEPOINT work")
    savepoint(connection, "RELEASE SAVEPOINT work")


def savepoint(connection: Connection, statement: str) -> None:
    """Said to the driver itself: at thousands of works a second the layers between would cost more than the work."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()


@contextmanager
def _session(connection: Connection) -> Iterator[Session]:
    """A session that leaves the transaction to its caller, and whose rows may be used after it."""
    session = Session(
        connection, expire_on_commit=False, autoflush=True, join_transaction_mode="rollback_only"
    )
    try:
        yield session
    finally:
        session.expunge_all()
        session.close()


def _settle(jobs: list[Job[Any]]) -> None:
    """One wake-up per event loop, however many of its tasks wait."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[Job[Any]]] = defaultdict(list)
    for job in jobs:
        if job.error is not None and isinstance(job.error, IntegrityError):
            log.error("a write broke a rule of the schema: %s", job.error.orig)
        if job.loop is None:
            job.settle()
        else:
            by_loop[job.loop].append(job)
    for loop, waiting in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle_here, waiting)
        except RuntimeError:
            log.debug("an event loop closed before its writes were answered")


def _settle_here(jobs: list[Job[Any]]) -> None:
    for job in jobs:
        job.settle()


# --- the database itself -----------------------------------------------------------------------------------


def open_store(url: str, *, check: bool = True) -> Store:
    """The record at `url`. Raises SetupError when its schema is not this version's, or no driver is installed."""
    if check:
        from server.store import migrate

        migrate.check(url)
    return Store(url)


def _engine(url: str, *, readonly: bool) -> Engine:
    """An engine of one kind of connection. Raises SetupError for a URL that cannot work."""
    try:
        address = make_url(url)
        if address.get_backend_name() == "sqlite":
            return _sqlite(url, readonly=readonly)
        if address.get_backend_name() != "postgresql":
            raise SetupError(
                f"{address.drivername} is not supported: give a sqlite:/// or postgresql+psycopg:// URL"
            )
        engine = create_engine(
            url,
            pool_pre_ping=True,
            pool_size=READERS if readonly else 1,
            max_overflow=READERS if readonly else 1,
        )
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise SetupError(
            f"this database URL cannot be used ({error}); for PostgreSQL: pip install 'psycopg[binary]'"
        ) from error
    if not readonly:
        return engine
    return engine.execution_options(
        hone_readonly=True, postgresql_readonly=True, isolation_level="REPEATABLE READ"
    )


def _sqlite(url: str, *, readonly: bool) -> Engine:
    if make_url(url).database in (None, "", ":memory:"):
        raise SetupError("SQLite needs a file here: sqlite:////path/to/hone.db")
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=READERS if readonly else 1,
        max_overflow=READERS if readonly else 1,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
    )
    begin = "BEGIN" if readonly else "BEGIN IMMEDIATE"

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say so, not at the driver's guess
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"query_only={int(readonly)}",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine.execution_options(hone_readonly=True) if readonly else engine


def _closed() -> Unavailable:
    return Unavailable(
        "The store is closed: the server is stopping.", code="database_unavailable", retry_after=2
    )
