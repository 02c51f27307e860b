"""Who is calling, and for how long an answer is remembered."""

import asyncio
from pathlib import Path

import pytest

from server import callers
from server.callers import Caller, Callers, Kind, Remembered
from server.errors import Forbidden, Unauthenticated
from server.settings import Settings
from server.store import keys, migrate
from server.store.session import Store, open_store


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    url = Settings(data_dir=tmp_path).resolved_database_url
    migrate.upgrade(url)
    opened = open_store(url)
    yield opened
    opened.close()


def test_many_questions_at_once_are_asked_once() -> None:
    asked = []

    async def ask(name: str) -> str:
        asked.append(name)
        await asyncio.sleep(0.01)
        return name.upper()

    async def story() -> None:
        known = Remembered(ask)
        assert await asyncio.gather(*(known.get("a") for _ in range(50))) == ["A"] * 50
        assert await known.get("a") == "A"
        assert asked == ["a"]

    asyncio.run(story())


def test_an_answer_is_forgotten_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "REMEMBERED_SECONDS", 0.05)
    answers = iter(["old", "new"])

    async def ask(name: str) -> str:
        return next(answers)

    async def story() -> None:
        known = Remembered(ask)
        assert await known.get("a") == "old"
        await asyncio.sleep(0.06)
        assert await known.get("a") == "new"

    asyncio.run(story())


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "REMEMBERED_KEYS", 3)

    async def ask(name: str) -> str:
        return name

    async def story() -> None:
        known = Remembered(ask)
        for name in "abcdef":
            await known.get(name)
        assert list(known._known) == ["d", "e", "f"]

    asyncio.run(story())


def test_a_failure_is_not_remembered() -> None:
    tries = []

    async def ask(name: str) -> str:
        tries.append(name)
        if len(tries) == 1:
            raise OSError("away")
        return name

    async def story() -> None:
        known = Remembered(ask)
        with pytest.raises(OSError, match="away"):
            await known.get("a")
        assert await known.get("a") == "a"

    asyncio.run(story())


def test_a_guessed_secret_of_a_real_key_is_unknown(store: Store) -> None:
    _, token = store.write(
        lambda session: keys.create_client_key(session, client="shop", name="k", scopes=["chat"])
    )
    guessed = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")

    async def story() -> None:
        known = Callers(store, local_sessions=True)
        assert (await known.identify(token)).scopes == {"chat"}
        for wrong in (guessed, token.upper(), token + "x", "", "hone_sk_", "a.b"):
            with pytest.raises(Unauthenticated):
                await known.identify(wrong)

    asyncio.run(story())


def test_a_session_never_has_more_than_its_key_has_now(store: Store) -> None:
    row, token = store.write(
        lambda session: keys.create_client_key(
            session, client="shop", name="k", scopes=["chat", "operator", "admin"]
        )
    )

    async def story() -> None:
        known = Callers(store, local_sessions=True)
        caller = await known.identify(token)
        session, _ = await known.open_session(caller, user="ada", segment=None, seconds=60)
        browser = await known.identify(session)
        assert browser.scopes == {"chat"}
        assert (browser.kind, browser.user, browser.client_id) == (Kind.SESSION, "ada", row.client_id)
        other, _ = await known.open_session(caller, user="ada", segment=None, seconds=-1)
        with pytest.raises(Unauthenticated):
            await known.identify(other)

    asyncio.run(story())


def test_sessions_survive_a_rotation_of_their_secret_and_not_two(store: Store) -> None:
    _, token = store.write(
        lambda session: keys.create_client_key(session, client="shop", name="k", scopes=["chat"])
    )

    async def story() -> None:
        known = Callers(store, local_sessions=True)
        caller = await known.identify(token)
        session, _ = await known.open_session(caller, user="ada", segment=None, seconds=60)
        for alive in (True, False):
            await store.write_async(lambda s: keys.rotate_session_secret(s).kid)
            known.forget()
            if alive:
                assert (await known.identify(session)).user == "ada"
            else:
                with pytest.raises(Unauthenticated):
                    await known.identify(session)

    asyncio.run(story())


def test_a_session_speaks_only_for_its_user() -> None:
    session = Caller("c", "k", "session", frozenset({"chat"}), Kind.SESSION, user="ada")
    assert session.speaks_for(None) == session.speaks_for("ada") == "ada"
    with pytest.raises(Forbidden):
        session.speaks_for("bob")
    key = Caller("c", "k", "key", frozenset({"chat"}), Kind.KEY)
    assert key.speaks_for("bob") == "bob"
    assert key.speaks_for(None) is None
