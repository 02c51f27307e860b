"""`hone` as an operator types it: exit codes, one-line errors, REST when a server answers and else the record."""

from __future__ import annotations

import gc
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from typer.testing import CliRunner, Result

from server.__main__ import app
from server.cli import serve
from server.errors import SetupError
from server.settings import Settings
from server.store import adapters as registry
from server.store import migrate
from server.store.keys import TOKEN
from server.store.session import Store, open_store
from tests.running import ROOT, RunningHone


def hone(*words: str, data_dir: Path | None = None) -> Result:
    given = [] if data_dir is None else ["--data-dir", str(data_dir)]
    return CliRunner().invoke(app, [*words, *given], prog_name="hone")


def apart(*words: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as from a shell."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HONE_")}
    return subprocess.run(
        [sys.executable, "-m", "server", *words],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def assert_one_line_error(result: Any, *words: str) -> None:
    code = result.exit_code if isinstance(result, Result) else result.returncode
    said = result.stderr.strip()
    assert code == 1, said
    assert "Traceback" not in said + result.stdout
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1, said
    for word in words:
        assert word in said


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An installation that was set up, without a server."""
    assert hone("db", "upgrade", data_dir=tmp_path / "data").exit_code == 0
    return tmp_path / "data"


def record_of(data_dir: Path) -> Store:
    return open_store(Settings(data_dir=data_dir).resolved_database_url)


def register(data_dir: Path, *versions: int, passed: bool = True) -> None:
    """Versions in the registry, as a cycle leaves them; their folders are of no interest here."""
    store = record_of(data_dir)

    def work(session: Any) -> None:
        registry.ensure_segment(session, "default")
        for version in versions:
            assert registry.reserve_version(session) == version
            registry.register(
                session,
                version=version,
                segment="default",
                parent=version - 1,
                cycle_id=None,
                path=f"adapters/default/v{version:06d}",
                manifest={
                    "people": 24,
                    "picks": 300,
                    "verdict": {"passed": passed, "reasons": ["taste went up"]},
                },
                manifest_sha256="0" * 64,
                passed=passed,
                trained_through=0,
            )

    store.write(work)
    store.close()


# --- the words themselves ----------------------------------------------------------------------------------


def test_help_lists_every_verb_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom server.__main__ import app\n"
        "result = CliRunner().invoke(app, ['--help'])\nassert result.exit_code == 0\nprint(result.stdout)\n"
        "heavy = {'torch', 'transformers', 'peft', 'fastapi', 'sqlalchemy', 'alembic', 'uvicorn', 'learner'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    for verb in ("serve", "learn", "adapters", "feedback", "keys", "db", "simulate", "evaluate", "doctor"):
        assert f" {verb} " in done.stdout


@pytest.mark.parametrize(
    "words", [["fly"], ["serve", "--port", "99999"], ["adapters", "promote"], ["learn", "--segment", "x"]]
)
def test_wrong_usage_is_exit_code_2(words: list[str]) -> None:
    assert hone(*words).exit_code == 2


def test_a_setting_that_cannot_stand_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_TEMPERATURE", "9")
    assert_one_line_error(hone("db", "check"), "HONE_TEMPERATURE", "less than or equal to 2")


def test_simulate_and_evaluate_are_the_learners_words() -> None:
    helped = apart("simulate", "--help")
    assert helped.returncode == 0
    for option in (
        "--users",
        "--picks",
        "--thumbs",
        "--taste",
        "--noise",
        "--adversaries",
        "--prompts-file",
        "--seed",
    ):
        assert option in helped.stdout
    assert apart("evaluate", "--versions", "1,1").returncode == 2


def test_simulate_without_a_key_says_where_keys_come_from(tmp_path: Path) -> None:
    assert_one_line_error(apart("simulate", "--data-dir", str(tmp_path)), "HONE_API_KEY", "admin.key")


# --- db ----------------------------------------------------------------------------------------------------


def test_db_upgrade_then_check_then_backup(data_dir: Path, tmp_path: Path) -> None:
    assert hone("db", "upgrade", data_dir=data_dir).exit_code == 0
    assert "up to date" in hone("db", "check", data_dir=data_dir).stdout
    register(data_dir, 1)
    copy = tmp_path / "copies" / "hone.db"
    copy.parent.mkdir()
    assert hone("db", "backup", str(copy), data_dir=data_dir).exit_code == 0
    restored = tmp_path / "restored"
    restored.mkdir()
    shutil.copy(copy, restored / "hone.db")
    assert [
        row["version"] for row in json.loads(hone("adapters", "list", "--json", data_dir=restored).stdout)
    ] == [1]
    assert_one_line_error(hone("db", "backup", str(copy), data_dir=data_dir), str(copy))


def test_db_check_of_nothing_names_the_command_that_mends_it(tmp_path: Path) -> None:
    assert_one_line_error(hone("db", "check", data_dir=tmp_path), "hone db upgrade")


def test_a_data_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_line_error(
        hone("db", "upgrade", data_dir=tmp_path / "file" / "data"), "cannot make the data directory"
    )


# --- verbs on the record -----------------------------------------------------------------------------------


def test_adapters_are_moved_in_the_record_when_no_server_answers(data_dir: Path) -> None:
    assert "bare base" in hone("adapters", "list", data_dir=data_dir).stdout
    register(data_dir, 1, 2)
    assert "champion is version 1, was 0" in hone("adapters", "promote", "1", data_dir=data_dir).stdout
    moved = hone(
        "adapters", "promote", "2", "--expecting", "1", "--reason", "better", "--json", data_dir=data_dir
    )
    assert json.loads(moved.stdout)["previous"] == 1
    assert_one_line_error(hone("adapters", "promote", "1", "--expecting", "1", data_dir=data_dir))
    assert "champion is version 1, was 2" in hone("adapters", "rollback", data_dir=data_dir).stdout
    assert (
        "champion is the bare base (version 0), was 1"
        in hone("adapters", "rollback", data_dir=data_dir).stdout
    )
    assert_one_line_error(hone("adapters", "rollback", data_dir=data_dir))
    assert "champion is version 1" in hone("adapters", "rollforward", data_dir=data_dir).stdout
    assert "pinned; version 1 serves" in hone("adapters", "pin", data_dir=data_dir).stdout
    assert "unpinned" in hone("adapters", "unpin", data_dir=data_dir).stdout
    states = {
        row["version"]: row["state"]
        for row in json.loads(hone("adapters", "list", "--json", data_dir=data_dir).stdout)
    }
    assert states == {1: "champion", 2: "retired"}
    assert "champion" in hone("adapters", "list", data_dir=data_dir).stdout


def test_the_list_says_what_serves_in_each_segment_and_what_holds_it_there(data_dir: Path) -> None:
    """After a rollback to the bare base the table said of no version that it serves, and nothing of the hold."""

    def said(*words: str) -> list[str]:
        return hone("adapters", "list", *words, data_dir=data_dir).stdout.splitlines()

    assert said() == ["no versions yet", "default: the bare base (version 0) serves"]
    register(data_dir, 1)
    hone("adapters", "promote", "1", data_dir=data_dir)
    assert re.fullmatch(r"default: version 1 serves since 20[0-9-]{8} [0-9:]{8} UTC", said()[-1])
    hone("adapters", "rollback", data_dir=data_dir)
    hone("adapters", "pin", data_dir=data_dir)
    serves, pinned, held = said()[-1].split(" · ")
    assert serves.startswith("default: the bare base (version 0) serves since ")
    assert pinned.startswith("pinned: ")
    assert held.startswith("held since a rollback: ")
    assert said("--segment", "elsewhere") == ["no versions of that kind"]


def test_show_says_why_a_server_refused_a_version_and_that_0_is_the_base(data_dir: Path) -> None:
    """The reason stood in the API alone, and 0 was a wrong use of the command."""
    register(data_dir, 1)
    store = record_of(data_dir)
    for outcome, detail in (("verified", "its probe holds"), ("rejected", "its probe is 3 nats away")):
        store.write(
            lambda s, o=outcome, d=detail: registry.record_check(s, version=1, outcome=o, detail=d) and None
        )
    store.close()
    said = hone("adapters", "show", "1", data_dir=data_dir).stdout
    assert "rejected: its probe is 3 nats away" in said
    assert "its probe holds" not in said
    assert_one_line_error(hone("adapters", "show", "0", data_dir=data_dir), "the bare base")


def test_show_says_what_the_gate_said(data_dir: Path) -> None:
    register(data_dir, 1, passed=False)
    said = hone("adapters", "show", "1", data_dir=data_dir).stdout
    assert "refused" in said
    assert "taste went up" in said
    assert_one_line_error(hone("adapters", "show", "7", data_dir=data_dir), "7")


def test_every_move_in_the_record_leaves_its_audit_row(data_dir: Path) -> None:
    register(data_dir, 1)
    hone("adapters", "promote", "1", data_dir=data_dir)
    hone("keys", "create", "--client", "shop", data_dir=data_dir)
    with sqlite3.connect(data_dir / "hone.db") as rows:
        found = rows.execute("select actor, action from audit_entry order by at").fetchall()
    assert [action for _, action in found] == ["segment.promote", "key.create"]
    assert all(actor.startswith("cli:") for actor, _ in found)


def test_a_keys_token_is_printed_once_and_alone(data_dir: Path) -> None:
    made = hone(
        "keys", "create", "--client", "shop", "--scope", "chat", "--scope", "operator", data_dir=data_dir
    )
    token = made.stdout.strip()
    assert token.startswith("hone_sk_")
    assert len(token.splitlines()) == 1
    listed = json.loads(hone("keys", "list", "--json", data_dir=data_dir).stdout)
    assert [(row["client"], row["scopes"], row["revoked_at"]) for row in listed] == [
        ("shop", ["chat", "operator"], None)
    ]
    found = TOKEN.fullmatch(token)
    assert found is not None
    secret = found[2]
    assert secret not in hone("keys", "list", data_dir=data_dir).stdout + json.dumps(listed)
    assert hone("keys", "revoke", listed[0]["id"], data_dir=data_dir).exit_code == 0
    assert json.loads(hone("keys", "list", "--json", data_dir=data_dir).stdout)[0]["revoked_at"]
    assert_one_line_error(hone("keys", "revoke", "key_nobody", data_dir=data_dir))


def test_feedback_of_an_empty_record(data_dir: Path) -> None:
    assert hone("feedback", "list", data_dir=data_dir).stdout.strip() == "no feedback yet"
    assert json.loads(hone("feedback", "list", "--json", data_dir=data_dir).stdout) == []


def test_an_address_left_by_a_dead_server_does_not_stop_the_verbs(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (data_dir / "server.json").write_text(json.dumps({"url": f"http://127.0.0.1:{port}", "pid": 1}))
    assert "bare base" in hone("adapters", "list", data_dir=data_dir).stdout
    (data_dir / "server.json").write_text("{half")
    assert "bare base" in hone("adapters", "list", data_dir=data_dir).stdout
    assert_one_line_error(
        hone("adapters", "list", "--url", f"http://127.0.0.1:{port}", data_dir=data_dir), "nothing answers"
    )


# --- serve -------------------------------------------------------------------------------------------------


def stamp(data_dir: Path, revision: str) -> None:
    with sqlite3.connect(data_dir / "hone.db") as rows:
        rows.execute("update alembic_version set version_num = ?", (revision,))


def test_serve_refuses_a_schema_that_is_newer_than_the_code(data_dir: Path) -> None:
    stamp(data_dir, "2099_01_01_from_the_future")
    done = apart("serve", "--engine", "echo", "--port", "0", "--data-dir", str(data_dir))
    assert_one_line_error(done, "newer")
    assert not (data_dir / "server.json").exists()


def test_tables_of_somebody_else_are_refused_alike_by_every_verb(tmp_path: Path) -> None:
    """`serve` and `db check` called it empty and sent the operator to `db upgrade`, which then refused."""
    with sqlite3.connect(tmp_path / "hone.db") as rows:
        rows.execute("create table shop (id int)")
    for words in (("serve", "--engine", "echo", "--port", "0"), ("db", "check"), ("db", "upgrade")):
        assert_one_line_error(apart(*words, "--data-dir", str(tmp_path)), "not Hone's", "HONE_DATABASE_URL")


def test_serve_refuses_a_taken_port_before_anything_slow(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert_one_line_error(
            apart("serve", "--port", port, "--data-dir", str(tmp_path / "data")), "taken", "--port"
        )
    assert not (tmp_path / "data").exists()


def test_a_schema_that_is_older_is_refused_with_the_upgrade_of_that_very_directory(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare `hone db upgrade` mended the default directory, and `serve` refused this one as before."""
    with monkeypatch.context() as newer:
        newer.setattr(migrate, "_head", lambda: "2099_01_01_from_the_future")
        with pytest.raises(SetupError, match=r"is older .* hone db upgrade --data-dir") as refused:
            serve.prepare(Settings(data_dir=data_dir), upgrade=False)
    words = shlex.split(refused.value.message.rpartition(": hone ")[2])
    assert hone(*words).exit_code == 0
    monkeypatch.chdir(data_dir.parent)
    (data_dir / "hone.db").unlink()
    with pytest.raises(SetupError, match=r"hone db upgrade$"):
        migrate.check(Settings(data_dir=Path("data")).resolved_database_url)


def test_serve_brings_an_older_record_up_to_date_when_asked(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgraded: list[str] = []
    monkeypatch.setattr(migrate, "upgrade", upgraded.append)
    settings = Settings(data_dir=data_dir)
    serve.prepare(settings, upgrade=False)
    assert upgraded == []
    serve.prepare(settings, upgrade=True)
    assert upgraded == [settings.resolved_database_url]


def test_make_serve_acts_on_the_directory_that_it_is_given_and_on_no_other() -> None:
    """It upgraded the default directory and then served the one that was named."""
    done = subprocess.run(
        ["make", "--dry-run", "serve", "ARGS=--data-dir elsewhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    verbs = [line.split("/hone ")[1] for line in done.stdout.splitlines() if "/hone " in line]
    assert verbs == ["serve --upgrade --data-dir elsewhere"]


def test_serve_refuses_strangers_without_a_key_and_says_what_makes_one(tmp_path: Path) -> None:
    """It said `hone keys create`, which does not go without a client and acts on the default directory."""
    done = apart("serve", "--engine", "echo", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path))
    assert_one_line_error(done, "hone keys create")
    words = shlex.split(done.stderr.rpartition(": hone ")[2])
    assert hone(*words).exit_code == 0
    assert [
        row["scopes"] for row in json.loads(hone("keys", "list", "--json", data_dir=tmp_path).stdout)
    ] == [["admin", "operator"]]


def test_a_first_start_that_fails_has_shown_its_key(tmp_path: Path) -> None:
    """It was made before the model was looked for and shown after: the next start found it there and was silent."""
    data_dir = tmp_path / "data"
    done = apart("serve", "--model", str(tmp_path / "gone"), "--port", "0", "--data-dir", str(data_dir))
    assert done.returncode == 1
    assert done.stdout.count((data_dir / "admin.key").read_text().strip()) == 1


def test_serving_over_vllm_needs_a_server_by_name(data_dir: Path) -> None:
    done = apart("serve", "--engine", "vllm", "--port", "0", "--data-dir", str(data_dir))
    assert done.returncode == 1
    assert "--vllm-url" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "variable", "urls"),
    [
        (["--vllm-url", "http://a:1", "--vllm-url", "http://b:2"], "", ["http://a:1", "http://b:2"]),
        ([], "http://a:1,http://b:2", ["http://a:1", "http://b:2"]),
        ([], "", []),
    ],
)
def test_vllm_servers_are_named_one_by_one_or_with_commas(
    words: list[str], variable: str, urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr("server.doctor.examine", lambda settings, **_: seen.append(settings) or [])
    if variable:
        monkeypatch.setenv("HONE_VLLM_URL", variable)
    assert hone("doctor", "--engine", "vllm", *words).exit_code == 0
    assert seen[0].vllm_urls == urls


@pytest.mark.parametrize(("engine", "learns"), [("local", True), ("vllm", True), ("echo", False)])
def test_the_learner_runs_beside_every_engine_that_has_a_policy(engine: str, learns: bool) -> None:
    settings = Settings(engine=engine, vllm_url="http://a:1")  # type: ignore[arg-type]
    assert bool(serve.learner_beside(settings)) == learns
    assert not serve.learner_beside(settings.model_copy(update={"learner": False}))


def test_what_a_first_start_makes_is_for_this_user_alone(tmp_path: Path) -> None:
    """The database holds what people said and the secret that signs sessions; others could read it."""
    made = tmp_path / "data"
    assert hone("db", "upgrade", data_dir=made).exit_code == 0
    with RunningHone(made, "--engine", "echo") as running:
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (made, *made.glob("hone.db*"))}
        assert modes == {"data": 0o700, "hone.db": 0o600, "hone.db-wal": 0o600, "hone.db-shm": 0o600}
        running.cli("db", "backup", str(tmp_path / "copy.db"))
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600


def test_a_directory_that_was_there_stays_as_open_as_its_owner_made_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert hone("db", "upgrade", data_dir=tmp_path).exit_code == 0
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_serve_is_told_by_options_whose_word_to_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    served: list[Settings] = []
    monkeypatch.setattr(serve, "run", lambda settings, bound: served.append(settings))
    monkeypatch.setattr(serve.signal, "signal", lambda *_: None)
    options = ("--port", "0", "--trusted-proxies", "10.0.0.1", "--cors-origins", "https://shop.example")
    assert hone("serve", *options, data_dir=tmp_path).exit_code == 0
    assert (served[0].trusted_proxies, served[0].cors_origins) == ("10.0.0.1", "https://shop.example")


def test_serve_without_a_model_at_the_path_is_one_line(tmp_path: Path) -> None:
    done = apart(
        "serve", "--model", str(tmp_path / "gone"), "--port", "0", "--data-dir", str(tmp_path / "data")
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert str(tmp_path / "gone") in done.stderr.splitlines()[-1]


def test_a_first_start_prints_its_key_once_and_a_second_does_not(tmp_path: Path) -> None:
    running = RunningHone(tmp_path / "data", "--engine", "echo")
    with running:
        key = running.key
        assert stat.S_IMODE((running.data_dir / "admin.key").stat().st_mode) == 0o600
        assert running.log().count(key) == 1
        assert f"Hone answers at {running.url}" in running.log()
        assert running.get("/v1/segments")["data"][0]["name"] == "default"
        assert running.process is not None
        assert running.pid == running.process.pid
    with running:
        assert running.key == key
        assert running.log().count(key) == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_ends_well_and_takes_its_address_back(how: signal.Signals, tmp_path: Path) -> None:
    running = RunningHone(tmp_path / "data", "--engine", "echo").start()
    assert running.process is not None
    running.process.send_signal(how)
    assert running.process.wait(20) == 0
    assert not running.address_file.exists()
    assert "Traceback" not in running.log()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHone]:
    with RunningHone(tmp_path_factory.mktemp("served") / "data", "--engine", "echo") as server:
        yield server


def test_a_running_server_is_asked_and_answers_as_the_record_does(running: RunningHone) -> None:
    register(running.data_dir, 1)
    over_rest = json.loads(running.cli("adapters", "list", "--json"))
    assert over_rest == json.loads(hone("adapters", "list", "--json", data_dir=running.data_dir).stdout)
    said = running.cli("adapters", "promote", "0", "--reason", "try")
    assert running.url in said
    assert "champion is the bare base (version 0)" in said
    newest = running.get("/v1/promotions")["data"][0]
    assert (newest["version"], newest["reason"]) == (0, "try")
    assert not newest["by"].startswith("cli:")
    assert "gate" in running.cli("adapters", "show", "1")
    assert "default: the bare base (version 0) serves since " in running.cli("adapters", "list")
    refused = apart("adapters", "promote", "99", HONE_DATA_DIR=str(running.data_dir))
    assert_one_line_error(refused, "99")


def test_keys_over_rest_open_and_close_the_door(running: RunningHone) -> None:
    token = running.cli("keys", "create", "--client", "shop", "--name", "till", "--scope", "operator").strip()
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(running.url + "/v1/adapters", headers=headers).status_code == 200
    assert_one_line_error(apart("keys", "list", "--url", running.url, "--key", token), "insufficient_scope")
    (row,) = [row for row in json.loads(running.cli("keys", "list", "--json")) if row["name"] == "till"]
    running.cli("keys", "revoke", row["id"])
    deadline = time.monotonic() + 3
    while httpx.get(running.url + "/v1/adapters", headers=headers).status_code != 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_simulated_crowd_votes_through_the_real_door(running: RunningHone) -> None:
    crowd = ("--users", "5", "--picks", "20", "--thumbs", "10", "--noise", "inf")
    tally = json.loads(running.simulate(*crowd, "--json"))
    assert sum(tally["picks"].values()) == 20
    assert sum(tally["thumbs"].values()) == 10
    rows = json.loads(running.cli("feedback", "list", "--limit", "500", "--json"))
    assert {kind: sum(row["kind"] == kind for row in rows) for kind in ("pick", "thumb")} == {
        "pick": 20,
        "thumb": 10,
    }
    assert len({row["user"] for row in rows}) == 5
    assert "pick" in running.cli("feedback", "list", "--limit", "3")


def test_evaluate_compares_versions_through_the_real_door(running: RunningHone, tmp_path: Path) -> None:
    taste = tmp_path / "mine.py"
    taste.write_text("def short(messages, reply):\n    return -len(reply)\n")
    table = running.evaluate("--taste", f"{taste}:short", "--versions", "0", "--prompts", "7")
    assert table["prompts"] == 7
    assert table["versions"]["0"]["taste_mean"] < 0
    assert table["wins"] == {}
    assert "7 prompts" in running.cli(
        "evaluate", "--url", running.url, "--prompts", "7", "--taste", "remembers"
    )
    refused = apart(
        "evaluate", "--url", running.url, "--key", running.key, "--taste", f"{taste}:tall", "--versions", "0"
    )
    assert_one_line_error(refused, "tall")


def test_doctor_over_a_running_server_finds_nothing_to_mend(running: RunningHone) -> None:
    port = running.url.rpartition(":")[2]
    findings = json.loads(running.cli("doctor", "--engine", "echo", "--port", port, "--json"))
    assert {finding["level"] for finding in findings} == {"ok"}


def test_doctor_exits_with_1_when_something_must_be_mended(tmp_path: Path) -> None:
    result = hone("doctor", "--model", str(tmp_path / "gone"), "--port", "0", data_dir=tmp_path)
    assert result.exit_code == 1
    assert "there is no model at" in result.stdout
    assert "→" in result.stdout


def learners_of(server: RunningHone) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(server.pid).children():
        with suppress(psutil.Error):  # one that was just killed has no command line any more
            found += [one] if "learner" in one.cmdline() else []
    return found


def wait_for_learner(server: RunningHone, *, other_than: int = 0) -> psutil.Process:
    """The learner once it has lowered its own priority, which is the first thing it does."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for one in learners_of(server):
            if one.pid != other_than and one.nice() > 0:
                return one
        time.sleep(0.1)
    raise AssertionError(f"no learner came:\n{server.log()[-2000:]}")


@pytest.mark.full
def test_the_learner_works_beside_the_server_comes_back_and_ends_with_it(tmp_path: Path) -> None:
    with RunningHone(tmp_path / "data", learner=True) as server:
        first = wait_for_learner(server)
        first.kill()
        second = wait_for_learner(server, other_than=first.pid)
        os.kill(server.pid, signal.SIGKILL)
        assert server.process is not None
        server.process.wait()
        assert psutil.wait_procs([second], timeout=20)[1] == []
        server.start()
        third = wait_for_learner(server)
        server.stop()
        assert not third.is_running()


@pytest.mark.full
def test_the_demo_model_is_rated_and_evaluated_over_rest(tmp_path: Path) -> None:
    """What echo cannot show: replies of a real policy are on topic, and exact raters agree with their taste."""
    with RunningHone(tmp_path / "data") as server:
        tally = json.loads(
            server.simulate("--users", "4", "--picks", "20", "--thumbs", "0", "--noise", "0", "--json")
        )
        assert tally["agreement"] == 1.0
        assert sum(tally["picks"].values()) == 20
        table = server.evaluate("--taste", "remembers", "--versions", "0", "--prompts", "60")
        assert table["versions"]["0"]["on_topic"] > 0.5
        assert table["versions"]["0"]["tokens_mean"] > 5
        before = len(json.loads(server.cli("feedback", "list", "--json")))
        assert before == 20


def test_a_ready_server_spares_what_it_loaded_from_later_collections() -> None:
    """Walking it all halted every stream for a fifth of a second, whenever the collector thought of it."""
    try:
        serve.settle_memory()
        assert gc.get_freeze_count() > 100 * len(gc.get_objects())
    finally:
        gc.unfreeze()
