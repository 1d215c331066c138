"""Every instruction set, compiler and architecture computes the same bits.

``kernel_hashes.cpp`` prints a hash of each kernel's output. The hashes of every set that this
processor has, and of ARM64's sets under an emulator, are compared with ``kernel_hashes.txt``, so
that machines that never meet are compared too. After an intended change of the arithmetic, which
changes every text, write that file again:

    python -m tests.native.test_hashes > tests/native/kernel_hashes.txt
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from tests.native.programs import FOLDER, build, found_program, run
from textmill.engine.kernels import build as served
from textmill.engine.kernels.instruction_sets import (
    INSTRUCTION_SETS,
    InstructionSet,
    available_sets,
)

GOLDEN = FOLDER / "kernel_hashes.txt"
# The kernels are served as a library; all other options are theirs.
OPTIONS = [x for x in served.OPTIONS if x not in {"-shared", "-fPIC", "-fvisibility=hidden"}]
COMPILERS = ("g++", "clang++")
EMULATED = [item for item in INSTRUCTION_SETS if item.machine == "aarch64"]
SETS = {item.name: item for item in available_sets()}

is_emulation_needed = pytest.mark.skipif(
    platform.machine() in {"aarch64", "arm64"}, reason="this processor has the sets itself"
)


def hashes(text: str) -> dict[str, str]:
    """The hash of each kernel."""
    return dict(line.rsplit(" ", 1) for line in text.splitlines())


def own_program(source: str, compiler: str, instruction_set: InstructionSet) -> Path:
    return build(source, [found_program(compiler), *OPTIONS, *instruction_set.options])


def emulated_command(source: str, instruction_set: InstructionSet) -> list[str | Path]:
    compiler, emulator = found_program("aarch64-linux-gnu-g++"), found_program("qemu-aarch64")
    program = build(source, [compiler, "-static", *OPTIONS, *instruction_set.options])
    return [emulator, "-cpu", "max", program]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", SETS)
def test_the_bits_are_those_of_every_other_machine(name: str, compiler: str) -> None:
    done = run([own_program("kernel_hashes.cpp", compiler, SETS[name])])
    assert done.returncode == 0, done.stdout[-2000:]
    assert hashes(done.stdout) == hashes(GOLDEN.read_text())


@is_emulation_needed
@pytest.mark.parametrize("instruction_set", EMULATED, ids=[item.name for item in EMULATED])
def test_the_bits_of_arm64_are_the_same(instruction_set: InstructionSet) -> None:
    done = run(emulated_command("kernel_hashes.cpp", instruction_set))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert hashes(done.stdout) == hashes(GOLDEN.read_text())


@is_emulation_needed
@pytest.mark.parametrize("instruction_set", EMULATED, ids=[item.name for item in EMULATED])
def test_the_kernels_answer_every_call_correctly_on_arm64(instruction_set: InstructionSet) -> None:
    done = run([*emulated_command("kernels_driver.cpp", instruction_set), "emulated"])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.endswith("\n0 wrong answers\n")


def test_no_two_kernels_have_the_same_hash() -> None:
    """Two that have it would not compute what their names say."""
    found = hashes(GOLDEN.read_text())
    assert len(set(found.values())) == len(found) > 40


if __name__ == "__main__":
    best = next(iter(SETS.values()))
    sys.stdout.write(run([own_program("kernel_hashes.cpp", "g++", best)]).stdout)
