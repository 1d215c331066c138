"""The import rules of docs/architecture.md, each tried in a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "core": {"backend", "worker", "cli", "finetune", "flask", "torch", "transformers"},
    "backend": {"worker", "finetune", "cli", "torch", "transformers", "peft"},
    "worker": {"backend", "finetune", "cli", "flask"},
    "cli": {"backend", "worker", "finetune", "flask", "torch", "transformers"},
    "finetune": {"backend", "cli", "flask", "worker.app", "worker.tasks"},
    "migrations": {"backend", "worker", "cli", "finetune", "flask", "torch"},
}
# Run inside Alembic alone.
NOT_IMPORTABLE = {"migrations.env"}
_TRY = """
import importlib, sys
for name in sys.argv[1].split(","):
    importlib.import_module(name)
print(",".join({*sys.modules, *(module.split(".")[0] for module in sys.modules)}))
"""


def modules_of(package: str) -> list[str]:
    paths = (ROOT / package).rglob("*.py")
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths}
    names = {name.removesuffix(".__init__") for name in names}
    return sorted(n for n in names if n not in NOT_IMPORTABLE and not n.endswith("__main__"))


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_importing_a_package_leaves_out_what_it_must_never_import(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TRY, ",".join(modules_of(package))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.strip().split(","))
    assert not loaded & FORBIDDEN[package]


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_module_imports_what_its_package_may_not_even_inside_a_function(package: str) -> None:
    # The command line starts everything, but only inside the command that needs it.
    forbidden = FORBIDDEN[package] - (FORBIDDEN["cli"] if package == "cli" else set())
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            assert not {*names, *(name.split(".")[0] for name in names)} & forbidden, (
                f"{path}: {names}"
            )
