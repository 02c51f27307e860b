"""The whole loop through a real server: talk, pick, learn, swap under running streams, roll back."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import save_model
from tests.running import RunningHone

USERS, PICKS = 12, 120
TOPICS = ("bread", "coffee", "plants", "sleep", "running", "chess", "hiking")


@pytest.fixture(scope="module")
def hone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHone]:
    folder = tmp_path_factory.mktemp("loop")
    settings = {
        "HONE_PROFILE": "tiny",
        "HONE_MIN_LABELS": "20",
        "HONE_LEARNER_THREADS": "1",
        "HONE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    with RunningHone(folder / "data", **settings) as running:
        yield running


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "default", "messages": [{"role": "user", "content": text}], "max_tokens": 40, **more}


def liking(text: str) -> int:
    """The crowd's plain taste, one that votes in the low hundreds surely show: brevity."""
    return -len(text)


def talk_and_pick(hone: RunningHone) -> None:
    with hone.client() as client:
        for n in range(PICKS):
            asked = body(
                f"What about {TOPICS[n % len(TOPICS)]}?", candidates=2, user=f"user{n % USERS}", seed=n
            )
            answer = client.post("/v1/chat/completions", json=asked).raise_for_status().json()
            first, second = (liking(choice["message"]["content"]) for choice in answer["choices"])
            value = "tie" if first == second else "first" if first > second else "second"
            vote = {"kind": "pick", "comparison_id": answer["hone"]["comparison_id"], "value": value}
            client.post("/v1/feedback", json=vote).raise_for_status()


def answering(hone: RunningHone) -> int:
    """The version that wrote the next reply, as the record has it."""
    answer = hone.post("/v1/chat/completions", body("who is there?"))
    (reply,) = hone.get(f"/v1/turns/{answer['hone']['turn_id']}")["replies"]
    version: int = reply["version"]
    return version


class Streams:
    """Clients that go on streaming until told to stop; what they met is kept."""

    def __init__(self, hone: RunningHone, clients: int = 4) -> None:
        self.hone = hone
        self.turns: list[str] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._stream, args=(n,)) for n in range(clients)]

    def __enter__(self) -> "Streams":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def wait_for_more(self) -> None:
        """Until a reply that began after this call has ended, however slow the machine is."""
        enough = len(self.turns) + len(self._threads) + 1
        deadline = time.monotonic() + 120
        while len(self.turns) < enough:
            assert time.monotonic() < deadline, "the streams stand still"
            time.sleep(0.02)

    def _stream(self, seed: int) -> None:
        with self.hone.client() as client:
            while not self._stop.is_set():
                seed += 100
                asked = body("a long story", stream=True, seed=seed) | {"max_tokens": 60}
                with client.stream("POST", "/v1/chat/completions", json=asked) as response:
                    lines = [line for line in response.iter_lines() if line]
                if response.status_code != 200 or lines[-1] != "data: [DONE]" or '"error"' in lines[-2]:
                    self.failures.append("\n".join(lines[-2:]))
                self.turns.append(response.headers["X-Hone-Turn-Id"])


def test_talk_pick_learn_swap_and_roll_back(hone: RunningHone) -> None:
    assert answering(hone) == 0
    talk_and_pick(hone)

    hone.cli("learn", "--once")
    cycle = hone.newest_cycle()
    assert cycle["state"] in ("promoted", "refused"), cycle["reason"]
    assert cycle["version"] == 1, cycle["verdict"]
    assert [step["name"] for step in cycle["steps"]] == ["collect", "reward", "ppo", "judge", "register"]
    if cycle["state"] == "promoted":
        hone.post("/v1/segments/default/rollback", {"reason": "to see it swap"})

    with Streams(hone) as streams:
        promoted = hone.post("/v1/segments/default/promote", {"version": 1, "reason": "a try"})
        assert promoted["serving"] is True, hone.log()[-3000:]
        assert answering(hone) == 1
        streams.wait_for_more()
        hone.post("/v1/segments/default/rollback", {"reason": "enough"})
        assert answering(hone) == 0
        streams.wait_for_more()
        hone.post("/v1/segments/default/rollforward", {"reason": "after all"})
        assert answering(hone) == 1
        hone.post("/v1/segments/default/rollback", {"reason": "and back"})
    assert streams.failures == []
    assert answering(hone) == 0

    wrote = {hone.get(f"/v1/turns/{turn}")["replies"][0]["version"] for turn in streams.turns}
    assert wrote == {0, 1}, "streams ran before, between and after the swaps"
    checks = hone.get("/v1/adapters/1")["checks"]
    assert [check["outcome"] for check in checks] == ["verified"]


def test_a_vote_tells_which_cycle_read_it(hone: RunningHone) -> None:
    newest = hone.get("/v1/feedback?limit=1")["data"][0]
    receipt = hone.get(f"/v1/feedback/{newest['id']}")
    assert [use["version"] for use in receipt["used_in"]] == [1]
    assert {use["role"] for use in receipt["used_in"]} <= {"train", "judge"}


def test_the_version_says_what_it_was_trained_on(hone: RunningHone) -> None:
    adapter = hone.get("/v1/adapters/1")
    manifest = adapter["manifest"]
    assert (manifest["parent"], manifest["people"]) == (0, USERS)
    assert manifest["verdict"]["reasons"]
    assert {"adapter_model.safetensors", "adapter_config.json", "probe.json", "metrics.jsonl"} <= set(
        manifest["files"]
    )


def test_the_reason_for_not_training_stands_in_the_api(tmp_path: Path) -> None:
    model = str(save_model(tmp_path / "model"))
    with RunningHone(
        tmp_path / "data", learner=True, HONE_MODEL=model, HONE_LEARNER_POLL_SECONDS="0.2"
    ) as hone:
        for _ in range(300):
            if (said := hone.get("/v1/learner")["why_not"]) == "200 more votes to the first 200":
                break
            time.sleep(0.1)
        assert said == "200 more votes to the first 200"
