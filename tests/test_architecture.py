"""The import rules of docs/architecture.md, each tried in a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "textmill"
APPLICATION = {"textmill.backend", "textmill.worker", "textmill.cli", "textmill.finetune"}
SERVERS = {"flask", "celery", "redis", "sqlalchemy"}
MODELS = {"torch", "transformers", "peft"}
FORBIDDEN = {
    "core": APPLICATION | MODELS | {"textmill.engine", "textmill.tokenizing", "flask"},
    "tokenizing": APPLICATION | SERVERS | MODELS | {"textmill.engine"},
    "engine": APPLICATION | SERVERS | {"textmill.migrations"},
    "backend": APPLICATION | MODELS | {"textmill.engine"},
    "worker": APPLICATION | {"flask"},
    "cli": APPLICATION | MODELS | {"textmill.engine", "flask"},
    "finetune": APPLICATION | {"flask", "celery", "redis"},
    "migrations": APPLICATION | MODELS | {"textmill.engine", "flask"},
}
# The engine may use only these modules of core.
ENGINE_CORE = {"textmill.core.strategies", "textmill.core.errors", "textmill.core.catalog"}
# Run only by Alembic.
NOT_IMPORTABLE = {"textmill.migrations.env"}
_TRY = """
import importlib, sys
for name in sys.argv[1].split(","):
    importlib.import_module(name)
print(",".join(sys.modules))
"""


def forbidden_to(package: str) -> set[str]:
    return FORBIDDEN[package] - {f"textmill.{package}"}


def is_among(module: str, names: set[str]) -> bool:
    """Whether a module is one of these, or inside one of them."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def modules_of(package: str) -> list[str]:
    paths = (ROOT / package).rglob("*.py")
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths}
    names = {f"textmill.{name.removesuffix('.__init__')}" for name in names}
    return sorted(n for n in names if n not in NOT_IMPORTABLE and not n.endswith("__main__"))


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_importing_a_package_leaves_out_what_it_must_never_import(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _TRY, ",".join(modules_of(package))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.strip().split(","))
    assert not {name for name in loaded if is_among(name, forbidden_to(package))}


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_module_imports_what_its_package_may_not_even_inside_a_function(package: str) -> None:
    # The command line starts everything, but only inside the command that needs it.
    forbidden = forbidden_to(package) - (FORBIDDEN["cli"] if package == "cli" else set())
    for path in (ROOT / package).rglob("*.py"):
        assert not {name for name in imports_of(path) if is_among(name, forbidden)}, path


def test_of_core_the_engine_imports_strategies_errors_and_the_catalog_alone() -> None:
    for path in (ROOT / "engine").rglob("*.py"):
        used = {name for name in imports_of(path) if is_among(name, {"textmill.core"})}
        assert not {name for name in used if not is_among(name, ENGINE_CORE)}, path


@pytest.mark.parametrize("package", ["finetune", "benchmarks"])
def test_the_engine_is_used_without_the_worker(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert not {n for n in imports_of(path) if is_among(n, {"textmill.worker"})}, path


def test_every_package_is_importable_under_one_name_alone() -> None:
    packages = {path.name for path in SOURCE.iterdir() if path.is_symlink()}
    assert packages == {*FORBIDDEN, "web", "adapters"}
    for name in packages:
        assert (SOURCE / name).resolve() == ROOT / name
    for package in (*packages, "tests", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            assert not {n for n in imports_of(path) if is_among(n, packages)}, path
