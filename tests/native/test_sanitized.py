"""The kernels under the compiler's sanitizers, by a program that calls all of their functions.

It is built and run in four ways: as it is served, where every warning is an error; watched for
addresses, leaks and undefined behaviour, with this processor's instructions and with those that
every x86-64 has, which are other code; and watched for data races between the threads of a step.
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

SOURCES = Path(kernels.__file__).parent
DRIVER = Path(__file__).parent / "kernels_driver.cpp"
SECONDS = 200
OPTIONS = (
    "-std=c++20",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-psabi",  # vectors of 64 bytes are passed within one program only
    "-Wno-maybe-uninitialized",  # wrong in GCC's own headers: _mm512_undefined_ps
)
UNDEFINED = "-fsanitize=address,undefined,float-cast-overflow"
BASELINE = "-march=x86-64" if platform.machine() == "x86_64" else "-march=armv8-a"
WAYS = {
    "plain": ("-O1", "-march=native"),
    "addresses": ("-O0", "-g1", "-march=native", UNDEFINED, "-fno-sanitize-recover=all"),
    "addresses, baseline": ("-O0", "-g1", BASELINE, UNDEFINED, "-fno-sanitize-recover=all"),
    "threads": ("-O1", "-g1", "-march=native", "-fsanitize=thread"),
}


def compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs g++ with its sanitizers; see .ci/run")
        pytest.skip("g++ is not installed")
    return found


def driver(way: str) -> Path:
    """The program, built where its sources, options or compiler are new."""
    command = [compiler(), *OPTIONS, *WAYS[way], f"-I{SOURCES}", str(DRIVER)]
    version = subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout
    texts = [path.read_bytes() for path in [DRIVER, *sorted(SOURCES.glob("*.[hc]*"))]]
    key = hashlib.sha256(b"\0".join([" ".join(command).encode(), version, *texts])).hexdigest()
    path = KERNEL_DIR / f"driver-{key[:16]}"
    if not path.exists():
        KERNEL_DIR.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(f".{os.getpid()}")
        built = subprocess.run(
            [*command, "-o", str(made)], capture_output=True, text=True, timeout=SECONDS
        )
        assert built.returncode == 0, built.stderr[-3000:]
        made.replace(path)
    return path


def run(program: Path, *, has_fixed_addresses: bool = False) -> subprocess.CompletedProcess[str]:
    command = [str(program)]
    if has_fixed_addresses:
        command = ["setarch", platform.machine(), "--addr-no-randomize", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)


@pytest.mark.parametrize("way", WAYS)
def test_the_kernels_answer_every_call_rightly_and_touch_nothing_that_is_not_theirs(
    way: str,
) -> None:
    program = driver(way)
    done = run(program)
    if "unexpected memory mapping" in done.stderr:  # an older ThreadSanitizer on a newer Linux
        done = run(program, has_fixed_addresses=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    assert done.stdout.endswith("0 wrong answers\n")
    assert "Sanitizer" not in done.stderr
