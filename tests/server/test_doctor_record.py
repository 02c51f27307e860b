"""The doctor's look into databases that are missing, strange, old, new, away or held by the dead."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from server import doctor_record
from server.doctor import Finding, Level
from server.doctor_record import check_record
from server.settings import Settings
from server.store import cycles, keys, leases, migrate
from server.store.session import open_store


def settings(data_dir: Path, **fields: Any) -> Settings:
    return Settings(**{"data_dir": data_dir, "engine": "echo", **fields})


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    migrate.upgrade(settings(tmp_path).resolved_database_url)
    return tmp_path


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def execute(data_dir: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(data_dir / "hone.db") as rows:
        rows.execute(statement, values)


def hold_lease(data_dir: Path, holder: str, *, seconds: float) -> None:
    at = datetime.now(UTC).replace(tzinfo=None)
    until = at + timedelta(seconds=seconds)
    execute(
        data_dir,
        "insert into lease (name, holder, epoch, heartbeat_at, expires_at) values ('learner', ?, 1, ?, ?)",
        holder,
        str(at),
        str(until),
    )


def dead_pid() -> int:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def test_no_database_yet_is_fine_and_none_is_made(tmp_path: Path) -> None:
    finding = only(check_record(settings(tmp_path)))
    assert finding.level is Level.OK
    assert "not there yet" in finding.says
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_this_version_is_fine(data_dir: Path) -> None:
    database, training = check_record(settings(data_dir))
    assert "up to date" in database.says
    assert (training.check, training.level) == ("training", Level.OK)


def test_a_database_newer_than_the_code(data_dir: Path) -> None:
    execute(data_dir, "update alembic_version set version_num = '2099_01_01'")
    finding = only(check_record(settings(data_dir)))
    assert finding.level is Level.FAIL
    assert "newer than this Hone" in finding.says
    assert finding.mend == "install the newer version"
    assert finding.mend not in finding.says


def test_a_database_older_than_the_code_names_the_command(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_head", lambda: "2099_01_01")
    finding = only(check_record(settings(data_dir)))
    assert finding.level is Level.FAIL
    assert "older than this Hone" in finding.says
    assert finding.mend == f"hone db upgrade --data-dir {data_dir}"


def test_a_record_that_others_can_read(data_dir: Path) -> None:
    (data_dir / "hone.db").chmod(0o644)
    (exposed,) = [one for one in check_record(settings(data_dir)) if one.level is Level.FAIL]
    assert "can be read by others" in exposed.says
    subprocess.run(exposed.mend.partition(";")[0].split(), check=True)
    assert {one.level for one in check_record(settings(data_dir))} == {Level.OK}


def test_somebody_elses_tables(tmp_path: Path) -> None:
    execute(tmp_path, "create table shop (id int)")
    finding = only(check_record(settings(tmp_path)))
    assert finding.level is Level.FAIL
    assert "not Hone's" in finding.says


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "hone.db").write_bytes(b"not a database at all, just words " * 100)
    finding = only(check_record(settings(tmp_path)))
    assert finding.level is Level.FAIL
    assert "not a database" in finding.says
    assert "backup" in finding.mend


def test_postgresql_that_does_not_answer_keeps_its_password_to_itself(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    finding = only(
        check_record(
            settings(tmp_path, database_url=f"postgresql+psycopg://hone:s3cret@127.0.0.1:{port}/hone")
        )
    )
    assert finding.level is Level.FAIL
    assert "cannot be reached" in finding.says
    assert "PostgreSQL" in finding.mend
    assert "s3cret" not in str(finding)


def test_postgresql_without_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_record, "find_spec", lambda name: None)
    finding = only(check_record(settings(tmp_path, database_url="postgresql+psycopg://hone@127.0.0.1/hone")))
    assert finding.level is Level.FAIL
    assert "hone-chat[postgres]" in finding.mend


@pytest.mark.parametrize("url", ["nonsense", "mysql+nothing://x/y"])
def test_an_address_that_is_no_database(url: str, tmp_path: Path) -> None:
    finding = only(check_record(settings(tmp_path, database_url=url)))
    assert finding.level is Level.FAIL
    assert "HONE_DATABASE_URL" in finding.says + finding.mend


def test_an_open_door_without_keys(data_dir: Path) -> None:
    open_to_all = settings(data_dir, host="0.0.0.0")
    _, finding, _ = check_record(open_to_all)
    assert finding.level is Level.FAIL
    assert "hone keys create" in finding.mend
    store = open_store(open_to_all.resolved_database_url)
    row = store.write(lambda s: keys.create_client_key(s, client="shop", name="k", scopes=["admin"])[0].id)
    assert {one.level for one in check_record(open_to_all)} == {Level.OK}
    store.write(lambda s: keys.revoke_key(s, row) and None)
    store.close()
    assert [one.level for one in check_record(open_to_all)] == [Level.OK, Level.FAIL, Level.OK]


def test_a_lease_held_by_a_dead_process(data_dir: Path) -> None:
    hold_lease(data_dir, f"{socket.gethostname()}:{dead_pid()}:abcd", seconds=20)
    _, finding, _ = check_record(settings(data_dir))
    assert finding.level is Level.WARN
    assert "has died" in finding.says
    assert "takes over within" in finding.mend


@pytest.mark.parametrize(
    "holder", [f"{socket.gethostname()}:{os.getpid()}:abcd", "elsewhere:1:abcd", "strange"]
)
def test_a_lease_held_by_the_living_or_by_somebody_unknown(holder: str, data_dir: Path) -> None:
    hold_lease(data_dir, holder, seconds=20)
    _, finding, _ = check_record(settings(data_dir))
    assert (finding.check, finding.level) == ("learner", Level.OK)


def test_a_lease_that_ran_out_is_nobodys(data_dir: Path) -> None:
    hold_lease(data_dir, f"{socket.gethostname()}:{dead_pid()}:abcd", seconds=-20)
    assert [one.check for one in check_record(settings(data_dir))] == ["database", "training"]


def test_why_nothing_is_trained_is_the_sentence_of_everywhere_else(data_dir: Path) -> None:
    """The README promised it, and the doctor knew nothing of it."""

    def training() -> Finding:
        return next(one for one in check_record(settings(data_dir)) if one.check == "training")

    store = open_store(settings(data_dir).resolved_database_url)
    store.write(lambda s: cycles.update_learner_state(s, "default", why_not="37 more votes") and None)
    assert training().says == cycles.NO_LEARNER
    store.write(lambda s: leases.show_up(s, holder="elsewhere:1:abcd", seconds=30))
    assert training() == Finding("training", Level.OK, "37 more votes")
    store.write(lambda s: leases.show_up(s, holder="elsewhere:1:abcd", seconds=0))
    store.write(lambda s: cycles.request_cycle(s, segment="default", by="op") and None)
    waits = training()
    assert (waits.level, waits.says) == (Level.WARN, cycles.NO_LEARNER)
    assert "hone learn" in waits.mend
    store.close()
