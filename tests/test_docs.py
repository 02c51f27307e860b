"""What the documents promise, checked against the code."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.prove import page as proof
from tests.settings_table import page

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_the_lock_installs_anywhere() -> None:
    """A local version (`+cpu`), a file or an address in the lock would install only where it was made."""
    rows = [row for row in (ROOT / "requirements.lock").read_text().splitlines() if not row.startswith("#")]
    assert rows
    assert [row for row in rows if not re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", row)] == []


def test_the_lock_holds_everything_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in ("local", "learner", "postgres", "dev"):
        wanted += project["optional-dependencies"][extra]
    names = {re.match(r"[A-Za-z0-9-]+", want)[0].lower() for want in wanted} - {"hone-chat"}  # type: ignore[index]
    locked = {row.split("==")[0] for row in (ROOT / "requirements.lock").read_text().splitlines()}
    assert names - locked == set()


def test_the_settings_page_is_made_from_the_settings() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == page()


def test_the_page_of_proofs_is_made_from_their_lines() -> None:
    docs = ROOT / "docs"
    made = {docs / place: text for place, text in proof.files().items()}
    assert {path: path.read_text() for path in made} == made
    assert set((docs / "proof").glob("*.svg")) == {path for path in made if path.suffix == ".svg"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
    dead = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert dead == []


def test_nobody_is_told_to_install_a_stranger() -> None:
    """The distribution is `hone-chat`; `hone` on the package index is somebody else's."""
    assert [
        p.name for p in DOCUMENTS if re.search(r"pip install (\S+ )*hone(?!-chat)\b", p.read_text())
    ] == []


def test_make_verbs_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    verbs = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {verb for verb in verbs if not re.search(rf"^{verb}:", makefile, re.MULTILINE)} == set()
