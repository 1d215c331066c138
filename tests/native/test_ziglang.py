"""On a machine without a compiler, the real package ``ziglang`` makes the same kernels.

It downloads 100 MB and compiles for minutes, so only ``make ziglang`` runs it. The ordinary suite
uses a package that only looks like it: ``tests/unit/engine/kernels/test_build.py``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.programs import FOLDER, build, run
from tests.native.test_hashes import GOLDEN, OPTIONS, SETS, hashes
from textmill.engine.kernels.compilers import Compiler

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("TEXTMILL_TEST_ZIGLANG"), reason="slow; make ziglang runs it"
    ),
    pytest.mark.timeout(3000),  # it compiles zig's own C++ library first
]
LOCK = FOLDER.parents[1] / "locks" / "compiler.txt"
SECONDS = 1200
PLACE = """
import sys
from pathlib import Path
from textmill.engine.models.placement import place
placed = place("auto", Path(sys.argv[1]), print)
print("placed", placed.dtype, placed.kernels and placed.kernels.compiler, placed.reason)
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that contains ziglang alone, installed from the lock."""
    folder = tmp_path_factory.mktemp("packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*command, "--target", folder, "--requirement", LOCK], check=True)
    return folder


def placed(folder: Path, *packages: Path) -> list[str]:
    """What a process without compilers on PATH reports while it chooses what computes."""
    (folder / "bin").mkdir(exist_ok=True)
    path = os.pathsep.join(map(str, [*packages, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PATH": str(folder / "bin"), "PYTHONPATH": path}
    environment.pop("CXX", None)
    done = subprocess.run(
        [sys.executable, "-c", PLACE, str(folder / "kernels")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_machine_without_compilers_gets_kernels_by_ziglang_once(
    packages: Path, tmp_path: Path
) -> None:
    first, last = placed(tmp_path, packages)
    assert first.startswith("compiling the kernels for ")
    assert "ziglang" in first
    assert last.startswith("placed int8 ziglang, clang version ")
    assert placed(tmp_path, packages) == [last]
    (built,) = (tmp_path / "kernels").iterdir()  # nothing of zig's own is kept
    assert built.suffix == ".so"


@pytest.mark.parametrize("name", SETS)
def test_ziglang_computes_the_same_bits(
    name: str, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zig = Compiler((sys.executable, str(packages / "ziglang"), "c++"), "", is_zig=True)
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(packages / "cache"))
    monkeypatch.setenv("ZIG_LOCAL_CACHE_DIR", str(packages / "cache"))
    done = run([build("kernel_hashes.cpp", [*zig.command, *OPTIONS, *zig.target(SETS[name])])])
    assert done.returncode == 0, done.stdout[-2000:]
    assert hashes(done.stdout) == hashes(GOLDEN.read_text())


def test_without_ziglang_pytorch_computes_and_the_reason_is_given(tmp_path: Path) -> None:
    if shutil.which("g++", path=str(Path(sys.executable).parent)):
        pytest.skip("the environment contains a compiler")
    (line,) = placed(tmp_path)
    assert line.startswith("placed float32 None no C++ compiler was found: install g++")
