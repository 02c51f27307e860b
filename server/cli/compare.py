"""`hone adapters compare`: two versions answer the same prompts, and what changed between them is counted.

    recent prompts of the record -> one reply of each version, same seed, kept out of training -> side by side, counts

Only a running server can answer. How it all looks in a terminal is in `side_by_side`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.installation import Row, running_server
from server.cli.words import AsJson, DataDir, Key, Segment, Url, dig, print_json
from server.errors import Busy, HoneError, NotFound, Unavailable
from server.manner import Manner, manner_of

if TYPE_CHECKING:
    from server.cli.served import Served

EVERYDAY = (
    "How do I make good coffee?",
    "Any tips for house plants?",
    "What helps to fall asleep faster?",
    "How do I start running?",
    "What could I cook tonight?",
    "How do I keep a room cool in summer?",
    "What should I pack for a weekend trip?",
    "How can I learn a language?",
)
"""Asked while nobody has asked anything yet."""
LOOKED_THROUGH = 2000
"""Turns of the record in which different prompts are looked for: a crowd may ask the same thing for long."""
AT_ONCE = 4
"""Prompts on their way at a time: enough to fill a batch, few enough to leave users their places."""
FACTS = {
    "created_at": "created_at",
    "state": "state",
    "parent": "parent",
    "picks": "manifest.picks",
    "thumbs": "manifest.thumbs",
    "people": "manifest.people",
    "passed": "passed",
    "win_rate": "verdict.numbers.preference.win_rate",
    "win_rate_at_least": "verdict.numbers.preference.lower_bound",
    "judged_on": "verdict.numbers.preference.prompts",
    "kl": "verdict.numbers.candidate.kl",
    "votes": "votes",
}
"""What the registry knows of a version, by the place where it stands in the API's row."""


@dataclass(frozen=True, slots=True)
class Said:
    """One version's reply to one prompt."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt as it was asked, and what each version says to it, in their order."""

    messages: list[dict[str, str]]
    replies: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two versions of a segment, on the same prompts."""

    segment: str
    champion: int
    versions: tuple[int, int]
    facts: tuple[Row, Row]
    from_record: bool
    """Whether people asked these prompts; else they are `EVERYDAY`."""
    cases: list[Case]
    left_out: int
    """Prompts too long for the context of the policy."""

    @property
    def identical(self) -> int:
        return sum(first.text == second.text for first, second in (case.replies for case in self.cases))

    @property
    def manners(self) -> tuple[Manner, Manner]:
        first, second = (
            manner_of([said.text for said in column], [said.tokens for said in column])
            for column in zip(*(case.replies for case in self.cases), strict=True)
        )
        return first, second

    def as_dict(self) -> Row:
        """As `--json` prints it."""
        names = [str(version) for version in self.versions]
        return {
            "segment": self.segment,
            "champion": self.champion,
            "versions": list(self.versions),
            "facts": dict(zip(names, self.facts, strict=True)),
            "from_record": self.from_record,
            "left_out": self.left_out,
            "identical": self.identical,
            "changed": dict(zip(names, map(asdict, self.manners), strict=True)),
            "prompts": [
                {
                    "messages": case.messages,
                    "replies": dict(zip(names, map(asdict, case.replies), strict=True)),
                }
                for case in self.cases
            ],
        }


def compare(
    first: Annotated[int, typer.Argument(metavar="A", min=0, help="A version; 0 is the bare base.")],
    second: Annotated[int, typer.Argument(metavar="B", min=0, help="Another one.")],
    prompts: Annotated[
        int, typer.Option(min=1, max=1000, envvar="HONE_PROMPTS", help="How many different prompts.")
    ] = 8,
    segment: Segment = "default",
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """What changed from A to B: both answer what people asked last; nothing of it is trained on."""
    if first == second:
        raise typer.BadParameter(f"version {first} is compared with itself; name two versions")
    with running_server(url, key, data_dir) as hone:
        found = contrast(hone, segment=segment, versions=(first, second), prompts=prompts)
    if as_json:
        print_json(found.as_dict())
        return
    from server.cli.side_by_side import print_contrast

    print_contrast(found)


def contrast(hone: Served, *, segment: str, versions: tuple[int, int], prompts: int) -> Contrast:
    """Have both versions answer. Raises HoneError for what is unknown, refused, or too long throughout."""
    champion = _champion(hone, segment)
    first, second = (_facts(hone, version, segment=segment, champion=champion) for version in versions)
    asked = list(islice(_distinct(_recent(hone, segment)), prompts))
    given = asked or [[{"role": "user", "content": text}] for text in EVERYDAY[:prompts]]

    def answer(messages: list[dict[str, str]]) -> Case | None:
        replies = [_reply(hone, messages, segment=segment, version=version) for version in versions]
        said = tuple(reply for reply in replies if reply is not None)
        return Case(messages, said) if len(said) == len(versions) else None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        cases = [case for case in _watched(pool.map(answer, given), total=len(given)) if case is not None]
    if not cases:
        raise HoneError("none of the prompts fits the context of the policy")
    return Contrast(
        segment,
        champion=champion,
        versions=versions,
        facts=(first, second),
        from_record=bool(asked),
        cases=cases,
        left_out=len(given) - len(cases),
    )


def _champion(hone: Served, segment: str) -> int:
    for lane in hone.segments():
        if lane["name"] == segment:
            return int(lane["champion"])
    raise NotFound(f"there is no segment {segment!r}")


def _facts(hone: Served, version: int, *, segment: str, champion: int) -> Row:
    """What the registry holds of a version; of the bare base, which nobody here made, only whether it serves."""
    if version == 0:
        return {"state": "champion"} if champion == 0 else {}
    row = hone.adapter(version)
    if row["segment"] not in (segment, "default"):
        raise NotFound(f"version {version} is of segment {row['segment']!r}: try --segment {row['segment']}")
    found = {name: dig(row, path) for name, path in FACTS.items()}
    return {name: value for name, value in found.items() if value is not None}


def _recent(hone: Served, segment: str) -> Iterator[list[dict[str, str]]]:
    """Newest first. Turns kept out of training are somebody's tests or privacy, earlier comparisons among them."""
    for turn in islice(hone.turns(segment=segment, train=True), LOOKED_THROUGH):
        if turn["messages"] and question_of(turn["messages"]).strip():
            yield turn["messages"]


def _distinct(prompts: Iterable[list[dict[str, str]]]) -> Iterator[list[dict[str, str]]]:
    seen: set[str] = set()
    for messages in prompts:
        spelled = json.dumps(messages)
        if spelled not in seen:
            seen.add(spelled)
            yield messages


def _reply(hone: Served, messages: list[dict[str, str]], *, segment: str, version: int) -> Said | None:
    """None when the prompt is too long for the context. The seed is the prompt's own, whoever answers and when."""
    body: dict[str, Any] = {
        "model": f"{segment}@{version}",
        "messages": messages,
        "candidates": 1,
        "seed": zlib.crc32(json.dumps(messages).encode()),
        "user": "compare",
        "metadata": {"hone_train": "false"},
    }
    try:
        answer = hone.chat(body)
    except (Busy, Unavailable):
        raise
    except HoneError as error:
        if error.code == "prompt_too_long":
            return None
        raise HoneError(f"version {version} cannot answer: {error.message}", code=error.code) from error
    return Said(answer["choices"][0]["message"]["content"] or "", answer["usage"]["completion_tokens"])


def _watched(cases: Iterator[Case | None], *, total: int) -> Iterable[Case | None]:
    """With a bar on standard error while it lasts, where there is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(cases, "answering", total, console=console, transient=True, disable=not console.is_terminal)


def question_of(messages: Sequence[dict[str, str]]) -> str:
    """The message that is answered: the user's last."""
    return next((m["content"] for m in reversed(messages) if m["role"] == "user"), messages[-1]["content"])
