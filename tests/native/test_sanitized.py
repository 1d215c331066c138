"""The kernels under the compilers' sanitizers, by a program that calls all of their functions.

The program is built and run in several ways by each compiler: as the kernels are served, with every
warning an error; with the sanitizers for addresses, leaks and undefined behaviour, once for each
instruction set of this processor, since each has its own code; and with the sanitizer for data
races between the threads of a step.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kernels import KERNEL_DIR
from textmill.engine import kernels
from textmill.engine.kernels.build import one_unit
from textmill.engine.kernels.instruction_sets import available_sets

SOURCES = Path(kernels.__file__).parent
DRIVER = Path(__file__).parent / "kernels_driver.cpp"
SECONDS = 300
OPTIONS = (
    "-std=c++20",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-psabi",  # vectors of 64 bytes are passed within one program only
)
# GCC's own headers trigger its warning in _mm512_undefined_ps.
COMPILERS = {"g++": ("-Wno-maybe-uninitialized",), "clang++": ()}
UNDEFINED = "-fsanitize=address,undefined,float-cast-overflow"
ADDRESSES = ("-O0", "-g1", UNDEFINED, "-fno-sanitize-recover=all")
SETS = available_sets()
WAYS = {
    "plain": ("-O1", *SETS[0].options),
    "threads": ("-O1", "-g1", *SETS[0].options, "-fsanitize=thread"),
} | {f"addresses, {item.name}": (*ADDRESSES, *item.options) for item in SETS}


def found_compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs {name} with its sanitizers; see .ci/run")
        pytest.skip(f"{name} is not installed")
    return found


def driver(compiler: str, way: str) -> Path:
    """The program, built if its sources, options or compiler have changed."""
    sources = sorted(SOURCES.rglob("*.[hc]*"))
    command = [found_compiler(compiler), *OPTIONS, *COMPILERS[compiler], *WAYS[way], f"-I{SOURCES}"]
    version = subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout
    texts = [path.read_bytes() for path in [DRIVER, *sources] if path.suffix in {".h", ".cpp"}]
    key = hashlib.sha256(b"\0".join([" ".join(command).encode(), version, *texts])).hexdigest()
    path = KERNEL_DIR / f"driver-{key[:16]}"
    if not path.exists():
        KERNEL_DIR.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in sources if path.suffix == ".cpp"]
        unit = path.with_suffix(".cpp")
        unit.write_text(one_unit(names), encoding="utf-8")
        built = path.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [*command, str(DRIVER), str(unit), "-o", str(built)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        built.replace(path)
    return path


def run(program: Path, *, has_fixed_addresses: bool = False) -> subprocess.CompletedProcess[str]:
    command = [str(program)]
    if has_fixed_addresses:
        command = ["setarch", platform.machine(), "--addr-no-randomize", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("way", WAYS)
def test_the_kernels_answer_every_call_correctly_and_touch_only_their_own_memory(
    compiler: str, way: str
) -> None:
    program = driver(compiler, way)
    done = run(program)
    if "unexpected memory mapping" in done.stderr:  # an older ThreadSanitizer on a newer Linux
        done = run(program, has_fixed_addresses=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    assert done.stdout.endswith("0 wrong answers\n")
    assert "Sanitizer" not in done.stderr


def test_the_compilers_agree_on_every_logit_and_token_to_the_last_bit() -> None:
    digests = {run(driver(compiler, "plain")).stdout.splitlines()[0] for compiler in COMPILERS}
    assert len(digests) == 1
    assert digests.pop().startswith("digest ")


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("source", sorted(path.name for path in SOURCES.glob("*.cpp")))
def test_every_source_compiles_on_its_own(compiler: str, source: str) -> None:
    """The kernels are built as one unit, in which a missing include would go unnoticed."""
    done = subprocess.run(
        [
            found_compiler(compiler),
            *OPTIONS,
            *COMPILERS[compiler],
            *SETS[0].options,
            "-fsyntax-only",
            str(SOURCES / source),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
