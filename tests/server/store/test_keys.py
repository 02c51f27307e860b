"""A key's secret is known to its bearer alone, and secrets that sign rotate without ending sessions."""

from __future__ import annotations

import pytest

from server.errors import Invalid, NotFound
from server.store import keys
from server.store.session import Store


def test_a_token_is_verified_by_its_hash_and_nothing_else_passes(store: Store) -> None:
    row, token = store.write(
        lambda s: keys.create_client_key(s, client="web", name="k", scopes=["chat", "chat"])
    )
    other, _ = store.write(lambda s: keys.create_client_key(s, client="web", name="k", scopes=["chat"]))
    assert row.scopes == ["chat"]
    assert row.client_id == other.client_id
    assert keys.verify(token, row)
    assert not keys.verify(token, other)
    assert not keys.verify(token[:-1] + ("A" if token[-1] != "A" else "B"), row)
    for nonsense in ("", "hone_sk_", token + "x", token.replace("hone_sk_", "sk-"), "hone_sk_ünïcode_x"):
        assert keys.parse_token(nonsense) is None
    secret = token.rpartition(row.id.removeprefix("key_") + "_")[2]
    assert secret not in repr(row)


def test_revoking_stays_and_an_unknown_key_is_said(store: Store) -> None:
    row, _ = store.write(lambda s: keys.create_client_key(s, client="web", name="k", scopes=["chat"]))
    first = store.write(lambda s: keys.revoke_key(s, row.id)).revoked_at
    assert first is not None
    assert store.write(lambda s: keys.revoke_key(s, row.id)).revoked_at == first
    assert [(key.id, client) for key, client in store.read(keys.list_keys)] == [(row.id, "web")]
    with pytest.raises(NotFound):
        store.write(lambda s: keys.revoke_key(s, "key_none"))


def test_two_signing_secrets_live_at_once(store: Store) -> None:
    assert store.read(keys.session_secrets) == []
    first = store.write(keys.session_secrets)[0]
    second = store.write(keys.rotate_session_secret)
    assert {secret.kid for secret in store.read(keys.session_secrets)} == {first.kid, second.kid}
    third = store.write(keys.rotate_session_secret)
    assert [secret.kid for secret in store.read(keys.session_secrets)] == [third.kid, second.kid]


def test_the_audit_is_read_page_by_page_and_refuses_a_foreign_cursor(store: Store) -> None:
    for n in range(3):
        store.write(lambda s, n=n: keys.audit(s, actor="op", action="x", target=str(n), detail={"n": n}))
    first, cursor = store.read(lambda s: keys.list_audit(s, limit=2))
    rest, end = store.read(lambda s: keys.list_audit(s, limit=2, cursor=cursor))
    assert [entry.target for entry in first + rest] == ["2", "1", "0"]
    assert end is None
    for wrong in ("x", "2020-01-01~a", "~"):
        with pytest.raises(Invalid):
            store.read(lambda s, at=wrong: keys.list_audit(s, cursor=at))
