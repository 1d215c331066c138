"""The kernels under the compilers' sanitizers, by a program that calls all of their functions.

The program is built and run in several ways by each compiler: as the kernels are served, with every
warning an error; with the sanitizers for addresses, leaks and undefined behaviour, once for each
instruction set of this processor, since each has its own code; and with the sanitizer for data
races between the threads of a step.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from tests.native.programs import SECONDS, SOURCES, build, found_program, run
from textmill.engine.kernels.instruction_sets import available_sets

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


def driver(compiler: str, way: str) -> Path:
    """The program, built if its sources, options or compiler have changed."""
    command = [found_program(compiler), *OPTIONS, *COMPILERS[compiler], *WAYS[way]]
    return build("kernels_driver.cpp", command)


def run_driver(
    program: Path, *, has_fixed_addresses: bool = False
) -> subprocess.CompletedProcess[str]:
    prefix = ["setarch", platform.machine(), "--addr-no-randomize"] if has_fixed_addresses else []
    return run([*prefix, program])


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("way", WAYS)
def test_the_kernels_answer_every_call_correctly_and_touch_only_their_own_memory(
    compiler: str, way: str
) -> None:
    program = driver(compiler, way)
    done = run_driver(program)
    if "unexpected memory mapping" in done.stderr:  # an older ThreadSanitizer on a newer Linux
        done = run_driver(program, has_fixed_addresses=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    assert done.stdout.endswith("0 wrong answers\n")
    assert "Sanitizer" not in done.stderr


def test_the_compilers_agree_on_every_logit_and_token_to_the_last_bit() -> None:
    digests = {
        run_driver(driver(compiler, "plain")).stdout.splitlines()[0] for compiler in COMPILERS
    }
    assert len(digests) == 1
    assert digests.pop().startswith("digest ")


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("source", sorted(path.name for path in SOURCES.glob("*.cpp")))
def test_every_source_compiles_on_its_own(compiler: str, source: str) -> None:
    """The kernels are built as one unit, in which a missing include would go unnoticed."""
    done = subprocess.run(
        [
            found_program(compiler),
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
