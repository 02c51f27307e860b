"""The batching loop over a decoder that only counts: who is in which step, and nobody gets more or less than asked."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.serving.llama_loop import Entry, work


class Counting:
    """The next token is the position plus one; writes down every step."""

    def __init__(self) -> None:
        self.steps: list[list[Entry]] = []
        self.forgotten: list[int] = []

    def decode(self, entries: Sequence[Entry]) -> list[int]:
        self.steps.append(list(entries))
        return [entry.position + 1 for entry in entries if entry.wanted]

    def clock(self) -> float:
        return float(len(self.steps))


def run(prompts: list[list[list[int]]], **options: int) -> tuple[list[dict[str, object]], Counting]:
    held = Counting()
    done = work(
        held.decode,
        held.forgotten.append,
        prompts,
        new_tokens=options.pop("new", 3),
        clock=held.clock,
        **options,
    )  # type: ignore[arg-type]
    return done, held


def test_each_prompt_gets_exactly_its_tokens() -> None:
    done, held = run([[[1, 2], [3]], [[4, 5, 6]]])
    assert [(one["prompt_tokens"], len(one["arrivals"])) for one in done] == [(2, 3), (3, 3), (1, 3)]  # type: ignore[arg-type]
    assert sorted(held.forgotten) == [0, 0, 1]


def test_positions_count_up_and_written_tokens_are_read_back() -> None:
    _, held = run([[[7, 8]]])
    assert [[(e.token, e.position, e.wanted) for e in step] for step in held.steps] == [
        [(7, 0, False), (8, 1, True)],
        [(2, 2, True)],
        [(3, 3, True)],
    ]


def test_a_client_goes_on_beside_the_others() -> None:
    """The second prompt of client 0 is read while client 1 still writes."""
    _, held = run([[[1], [2, 3]], [[4] * 4]], new=2, batch=4)
    mixed = [step for step in held.steps if len({entry.slot for entry in step}) == 2]
    assert mixed


def test_long_prompts_are_read_in_parts_and_replies_come_first() -> None:
    done, held = run([[[1]], [[9] * 20]], new=6, batch=8)
    assert max(len(step) for step in held.steps) == 8
    assert all(step[0].slot == 0 for step in held.steps[1:6])
    wanted = [entry for step in held.steps for entry in step if entry.slot == 1 and entry.wanted]
    assert wanted[0].position == 19
    assert len(done) == 2


def test_waiting_counts_from_the_end_of_the_reply_before() -> None:
    done, _ = run([[[1], [2]]], new=2)
    assert [one["asked"] for one in done] == [0.0, 2.0]
    assert [one["arrivals"] for one in done] == [[1.0, 2.0], [3.0, 4.0]]
