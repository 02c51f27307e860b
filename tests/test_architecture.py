"""The arrows between rooms, read from the code's own imports."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LEARNER_MAY_IMPORT = {
    "server.settings",
    "server.logs",
    "server.errors",
    "server.prompts",
    "server.checkpoint",
    "server.modeling",
    "server.decoding",
    "server.scoring",
    "server.store",
    "server.artifacts",
    "server.engine.vllm",
}
WEB_FRAMEWORKS = {"fastapi", "starlette", "uvicorn"}
TENSORS = {"torch", "transformers", "peft", "safetensors"}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(module: str, path: Path) -> set[str]:
    """Every module that `path` imports, absolute, wherever in the file it does so."""
    found: set[str] = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def within(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


ALL = [*modules("server"), *modules("learner")]


def offenders(prefix: str, forbidden: set[str]) -> list[str]:
    return [
        f"{module} imports {name}"
        for module, path in ALL
        if within(module, {prefix})
        for name in sorted(imports(module, path))
        if within(name, forbidden)
    ]


def test_the_import_reader_sees_relative_and_nested_imports(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text("from . import a\nfrom ..b import c\ndef f():\n    import d.e\n")
    assert imports("p.q.x", source) >= {"p.q.a", "p.b", "p.b.c", "d.e"}


def test_the_server_never_imports_the_learner() -> None:
    assert offenders("server", {"learner"}) == []


def test_the_learner_imports_only_its_share_of_the_server() -> None:
    strangers = [
        f"{module} imports {name}"
        for module, path in modules("learner")
        for name in sorted(imports(module, path))
        if name.startswith("server.") and not within(name, LEARNER_MAY_IMPORT)
    ]
    assert strangers == []


def test_nothing_that_trains_or_judges_imports_the_simulation() -> None:
    found = [
        f"{module} imports {name}"
        for module, path in modules("learner")
        if not within(module, {"learner.simulation", "learner.__main__"})
        for name in sorted(imports(module, path))
        if within(name, {"learner.simulation"})
    ]
    assert found == []


def test_the_simulation_speaks_only_rest() -> None:
    """The raters drive any deployed Hone, so they may know of it only what a stranger could."""
    rooms = ("drive", "evaluation", "figures", "raters", "rest", "scripts", "seeds", "tastes", "world")
    drivers = {f"learner.simulation.{room}" for room in rooms}
    found = [
        f"{module} imports {name}"
        for module, path in modules("learner")
        if module in drivers
        for name in sorted(imports(module, path))
        if within(name, {"server"}) and not within(name, {"server.errors"})
    ]
    assert found == []


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("server.store", TENSORS | WEB_FRAMEWORKS | {"server.engine", "server.api", "server.app"}),
        ("server.errors", WEB_FRAMEWORKS | {"http", "httpx"}),
        ("server.engine", {"server.store", "server.api", "sqlmodel", "sqlalchemy"} | WEB_FRAMEWORKS),
        ("server.decoding", {"asyncio", "queue", "server.store", "server.engine.local"} | WEB_FRAMEWORKS),
        ("server.prompts", {"server.store", "server.engine"} | WEB_FRAMEWORKS),
        (
            "server.checkpoint",
            {"torch", "peft", "safetensors", "server.engine", "server.modeling"} | WEB_FRAMEWORKS,
        ),
        *[
            (f"server.engine.{room}", TENSORS | {"server.modeling", "server.decoding"})
            for room in (
                "fleet",
                "greeting",
                "member",
                "places",
                "refusals",
                "replica",
                "reply",
                "text",
                "turns",
                "vllm",
            )
        ],
        ("server.artifacts", {"server.store", "sqlmodel", "sqlalchemy"} | TENSORS | WEB_FRAMEWORKS),
        ("server.pairing", TENSORS | WEB_FRAMEWORKS | {"server.store", "httpx"}),
        ("learner.ppo", {"server", "learner", "numpy", "transformers", "peft"}),
        ("learner.simulation.raters", {"learner", "httpx"}),
        ("learner.simulation.evaluation", {"learner.simulation.drive", "learner.simulation.raters"}),
        ("learner", WEB_FRAMEWORKS),
    ],
)
def test_a_room_knows_only_what_its_docstring_says(room: str, forbidden: set[str]) -> None:
    assert any(within(module, {room}) for module, _ in ALL), f"nothing is guarded: there is no {room}"
    assert offenders(room, forbidden) == []


def test_only_settings_read_the_environment() -> None:
    readers = [
        module
        for module, path in ALL
        if module != "server.settings"
        and any(word in path.read_text() for word in ("os.environ", "os.getenv"))
    ]
    assert readers == []


def test_every_module_says_what_it_owns() -> None:
    silent = [module for module, path in ALL if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []
