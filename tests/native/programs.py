"""Builds the C++ programs of this folder with the kernels' sources, and runs them.

A program is kept under a hash of its sources, options and compiler.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kernels import KERNEL_DIR
from textmill.engine import kernels
from textmill.engine.kernels.build import one_unit

FOLDER = Path(__file__).parent
SOURCES = Path(kernels.__file__).parent
SECONDS = 900  # as served, for two cores that others use too


def found_program(name: str) -> str:
    """The path of a program that .ci/run installs; without it the test is skipped, except in CI."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs {name}; see .ci/run")
        pytest.skip(f"{name} is not installed")
    return found


def build(source: str, command: Sequence[str]) -> Path:
    """Build a program of this folder; ``command`` is the compiler with its options."""
    sources = sorted(path for path in SOURCES.rglob("*") if path.suffix in {".h", ".cpp"})
    version = subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout
    texts = [path.read_bytes() for path in (FOLDER / source, *sources)]
    key = hashlib.sha256(b"\0".join([" ".join(command).encode(), version, *texts])).hexdigest()
    path = KERNEL_DIR / f"{Path(source).stem}-{key[:16]}"
    if not path.exists():
        KERNEL_DIR.mkdir(parents=True, exist_ok=True)
        unit = path.with_suffix(".cpp")
        unit.write_text(one_unit([path.name for path in sources]), encoding="utf-8")
        built = path.with_suffix(f".{os.getpid()}")
        parts = [f"-I{SOURCES}", str(FOLDER / source), str(unit), "-o", str(built)]
        done = subprocess.run([*command, *parts], capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr[-3000:]
        built.replace(path)
    return path


def run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=SECONDS)
