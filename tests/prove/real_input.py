"""Real input: a third-party checkpoint with traps of its own, real prompts, and one full cycle on picks over them."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from tests.flood import post_all_sync
from tests.prove.case import Case
from tests.prove.learns import outcome
from tests.running import ROOT, RunningHone

SHARED = ROOT.parent / "shared"
CHECKPOINT = SHARED / "models" / "tinytalk-3m"
TASTE = Path(__file__).parent / "plain_tastes.py"


def questions() -> list[str]:
    """Every prompt of every file, whatever its shape: the first thing a person would type."""
    texts = []
    for path in sorted((SHARED / "data").glob("prompts_*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            said = row.get("instruction") or row.get("prompt") or row.get("question") or row.get("turns")
            texts.append(said[0] if isinstance(said, list) else said or row.get("text"))
    return texts


def serve_every_prompt(hone: RunningHone) -> dict[str, Any]:
    """Statuses over all prompts; 400 `prompt_too_long` is a right answer to a prompt that does not fit."""
    bodies = [
        {"model": "default", "messages": [{"role": "user", "content": text}], "max_tokens": 24}
        for text in questions()
    ]
    flood = post_all_sync(hone.url, "/v1/chat/completions", bodies, key=hone.key, connections=8)
    too_long = [got for _, got in flood.with_status(400) if got["error"]["code"] == "prompt_too_long"]
    answered = flood.with_status(200)
    return {
        "prompts": len(bodies),
        "answered": len(answered),
        "empty": sum(not got["choices"][0]["message"]["content"] for _, got in answered),
        "too_long": len(too_long),
        "other": len(bodies) - len(answered) - len(too_long),
    }


def full_cycle(folder: Path, *, taste: str, seed: int) -> dict[str, Any]:
    with RunningHone(folder, "--model", str(CHECKPOINT), HONE_MODEL=str(CHECKPOINT)) as hone:
        served = serve_every_prompt(hone)
        files = sorted((SHARED / "data").glob("prompts_*.jsonl"))
        together = folder / "prompts.jsonl"
        together.write_text("".join(path.read_text(encoding="utf-8") for path in files), encoding="utf-8")
        options = ("--taste", f"{TASTE}:{taste}", "--prompts-file", str(together), "--seed", str(seed))
        hone.simulate("--users", "24", "--picks", "300", "--thumbs", "300", *options)
        hone.cli("learn", "--once")
        cycle = hone.newest_cycle()
        found = {**served, **outcome(cycle)}
        ended_with_reasons = cycle["state"] in ("promoted", "refused") and bool(found["reasons"])
        if cycle["state"] == "promoted":
            table = hone.evaluate(*options[:4], "--versions", f"0,{cycle['version']}", "--prompts", "500")
            found |= {"wins": next(iter(table["wins"].values())), "versions": table["versions"]}
        return {"holds": ended_with_reasons and not served["other"], **found}


def cases() -> list[Case]:
    if not CHECKPOINT.exists():
        return []
    return [
        Case(f"tinytalk-{taste}", 0, partial(full_cycle, taste=taste, seed=0))
        for taste in ("brief", "lively")
    ]
