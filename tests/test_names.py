"""What comments, docstrings and documents name exists: modules, their parts, files, settings."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from textmill.core.settings import PREFIX, Settings, variable_of

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "core",
    "tokenizing",
    "engine",
    "backend",
    "worker",
    "cli",
    "finetune",
    "migrations",
    "benchmarks",
)
DOCUMENTS = [
    *sorted(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SOURCES = sorted(
    path for package in (*PACKAGES, "tests", "scripts") for path in (ROOT / package).rglob("*.py")
)
_DOTTED = re.compile(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+(?![\w/-])")
_DOCUMENT = re.compile(r"(?<![\w/.*-])((?:[\w-]+/)*[A-Z][\w-]*\.md)\b")
_SETTING = re.compile(rf"\b{PREFIX}[A-Z_]+\b")
# TEXTMILL_DOMAIN is a variable of docker-compose.yml, which only Caddy gets.
_NOT_SETTINGS = ("TEXTMILL_TEST_", "TEXTMILL_BENCH_", "TEXTMILL_DOMAIN")
# A dotted name with one of these endings is a file name.
_FILE_ENDINGS = {"md", "toml", "json", "py", "sh", "yml", "txt", "db", "log", "js", "css", "html"}


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of a document's lines, or of a module's comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(words))):
                yield node.lineno, words


@cache
def parts_of(path: Path) -> dict[str, set[str]]:
    """The names that a module defines or imports, each with its members."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            found.setdefault(node.name, set()).update(_members(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.setdefault(node.name, set())
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                found.setdefault((alias.asname or alias.name).split(".")[0], set())
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.setdefault(node.id, set())
    return found


def _members(node: ast.ClassDef) -> set[str]:
    names = {n.name for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return names | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def exists(dotted: str) -> bool:
    """Whether a dotted name is a package, a module, or a part of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        place, rest = ROOT.joinpath(*parts[:length]), parts[length:]
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if not file.exists():
            continue
        if not rest:
            return True
        found = parts_of(file)
        return rest[0] in found and (len(rest) == 1 or rest[1] in found[rest[0]])
    return False


def unknown_names(path: Path) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {match}"
        for line, text in prose_of(path)
        for match in _DOTTED.findall(text)
        if match.rpartition(".")[2] not in _FILE_ENDINGS and not exists(match)
    ]


def unknown_documents(path: Path) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for line, text in prose_of(path)
        for name in _DOCUMENT.findall(text)
        if not any((folder / name).exists() for folder in (ROOT, ROOT / "docs", path.parent))
    ]


def unknown_settings(path: Path) -> list[str]:
    known = {variable_of(name) for name in Settings.model_fields}
    return [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for line, text in prose_of(path)
        for name in _SETTING.findall(text)
        if name not in known and not name.startswith(_NOT_SETTINGS)
    ]


@pytest.mark.parametrize("find", [unknown_names, unknown_documents, unknown_settings])
def test_what_is_named_exists(find: object) -> None:
    assert [name for path in (*SOURCES, *DOCUMENTS) for name in find(path)] == []  # type: ignore[operator]


def test_comments_docstrings_and_documents_are_all_looked_at(tmp_path: Path) -> None:
    source, document = ROOT / "core" / "database" / "tables.py", tmp_path / "page.md"
    document.write_text("See `core.fair_share` and DESIGN.md, or TEXTMILL_NOTHING.")
    lines = dict(prose_of(document))
    assert _DOTTED.findall(lines[1]) == ["core.fair_share"]
    assert _DOCUMENT.findall(lines[1]) == ["DESIGN.md"]
    assert _SETTING.findall(lines[1]) == ["TEXTMILL_NOTHING"]
    prose = "\n".join(text for _, text in prose_of(source))
    assert "core.jobs.admission" in prose  # a comment
    assert "core.jobs.store.JobStore" in prose  # a docstring


@pytest.mark.parametrize(
    ("name", "is_there"),
    [("core", True), ("core.jobs.store", True), ("core.jobs.store.JobStore", True),
     ("core.jobs.store.JobStore.claim", True), ("core.jobs.store.JobStore.nothing", False),
     ("core.fair_share", False), ("engine.errors", False), ("engine.models.errors", True),
     ("core.jobs.store.nothing", False)],
)  # fmt: skip
def test_a_name_that_resolves_to_nothing_is_found(name: str, is_there: bool) -> None:
    assert exists(name) is is_there
