"""The learner as a process: how it starts, and how it ends."""

import inspect
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer import BadParameter

from learner.__main__ import TIDY_MEMORY, app, duty_of
from learner.simulation import measure, pretrain
from server.errors import SetupError
from server.settings import Settings
from tests.fakes import save_model
from tests.learner.record import blank

ROOT = Path(__file__).resolve().parents[2]


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HONE_")}
    (folder / "hone.db").write_bytes(blank())
    return {**kept, "HONE_DATA_DIR": str(folder), "HONE_LEARNER_POLL_SECONDS": "0.2"}


def learn(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "learner", *words],
        cwd=ROOT,
        env={**environment(folder), **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def until(wanted: Path, process: subprocess.Popen[bytes], *, word: str) -> str:
    deadline = time.monotonic() + 60
    while word not in (said := wanted.read_text() if wanted.exists() else ""):
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    return said


def test_one_cycle_without_votes_is_one_plain_line_and_exit_1(tmp_path: Path) -> None:
    done = learn(tmp_path, "once")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "error: not training: 200 more votes to the first 200"
    assert "Traceback" not in done.stderr


def test_a_database_of_another_version_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "learner", "once"],
        cwd=ROOT,
        env={**environment(tmp_path), "HONE_DATA_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "hone db upgrade" in done.stderr


def test_what_is_fetched_lies_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With adapters in an object store, the learner kept its copies wherever it had been started."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "hone.db").write_bytes(blank())
    with duty_of(Settings(data_dir=tmp_path, artifacts_url="memory://bucket/prefix")) as duty:
        assert duty._artifacts.stage("adapters/default/v000001").is_relative_to(tmp_path)


@pytest.mark.parametrize(("cores", "threads"), [({0}, 1), ({0, 1}, 1), ({2, 3, 5, 7}, 3)])
def test_one_core_is_left_to_replies_unless_told_otherwise(
    cores: set[int], threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores, raising=False)
    (tmp_path / "hone.db").write_bytes(blank())
    for asked, got in ((0, threads), (5, 5)):
        with duty_of(Settings(data_dir=tmp_path, learner_threads=asked)) as duty:
            assert duty._settings.learner_threads == got


def test_the_scheduler_ends_in_good_order_when_asked(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "learner", "run"], cwd=ROOT, env=environment(tmp_path), stderr=out
        )
    said = until(log, process, word="200 more votes")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert "Traceback" not in said


def test_the_scheduler_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Killed outright, a server can tell nobody: its learner must notice by itself."""
    log, pid_file = tmp_path / "log", tmp_path / "pid"
    parent = (
        "import os, subprocess, sys, time\n"
        f"out = open({str(log)!r}, 'wb')\n"
        "child = subprocess.Popen([sys.executable, '-m', 'learner', 'run', '--parent', str(os.getpid())], stderr=out)\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    server = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, env=environment(tmp_path))
    until(log, server, word="watching the record")
    learner = int(pid_file.read_text())
    server.kill()
    server.wait()
    deadline = time.monotonic() + 30
    while alive(learner):
        assert time.monotonic() < deadline, "the learner outlived its server"
        time.sleep(0.1)


@pytest.mark.parametrize("words", [("once",), ("pretrain", "--measure")])
def test_a_setting_that_cannot_stand_is_one_plain_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    """It ended in the traceback of whatever checks settings."""
    done = learn(tmp_path, *words, HONE_PORT="abc")
    assert done.returncode == 1
    assert done.stderr.startswith("error: settings cannot stand: HONE_PORT: Input should be a valid integer")
    assert len(done.stderr.splitlines()) == 1


def test_measuring_a_model_that_is_not_there_is_one_plain_line(tmp_path: Path) -> None:
    done = learn(tmp_path, "pretrain", "--measure", "--out", str(tmp_path / "missing"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot read the card ")
    assert len(done.stderr.splitlines()) == 1


def test_the_card_is_read_before_the_minutes_of_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model without a card failed only after all had been measured."""
    monkeypatch.setattr(measure, "measure", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(SetupError, match="cannot read the card"):
        app(["pretrain", "--measure", "--out", str(save_model(tmp_path))], standalone_mode=False)


def test_pretraining_asks_for_the_cards_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command on the card took 2 threads, the bare one 1: other weights, and twice the time."""
    assert inspect.signature(pretrain.pretrain).parameters["threads"].default == 2
    asked: list[int] = []
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # or else this process would begin anew
    monkeypatch.setattr(pretrain, "pretrain", lambda out, *, threads, **_: asked.append(threads))
    app(["pretrain"], standalone_mode=False)
    app(["pretrain", "--threads", "3"], standalone_mode=False)
    assert asked == [2, 3]
    with pytest.raises(BadParameter):
        app(["pretrain", "--threads", "0"], standalone_mode=False)


def test_pretraining_begins_anew_once_with_tidy_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heap fell to pieces: 4.6 GB after twelve minutes, and rising."""
    begun: list[tuple[list[str], dict[str, str]]] = []

    def execve(path: str, words: list[str], variables: dict[str, str]) -> None:
        begun.append((words, variables))
        monkeypatch.setattr(os, "environ", variables)

    for name in TIDY_MEMORY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "learner", "pretrain", "--seed", "3"])
    monkeypatch.setattr(pretrain, "pretrain", lambda out, **_: None)
    for _ in range(2):
        app(["pretrain", "--seed", "3"], standalone_mode=False)
    [(words, variables)] = begun
    assert words == [sys.executable, "-m", "learner", "pretrain", "--seed", "3"]
    assert variables.items() >= TIDY_MEMORY.items()
    assert "PATH" in variables


def test_a_pretraining_that_cannot_begin_is_one_plain_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = learn(tmp_path, "pretrain", "--out", str(tmp_path / "file"))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [f"error: {tmp_path / 'file'} is not a folder"]
