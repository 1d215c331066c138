"""Compile the kernels once with the machine's own compiler, and load them.

Built files are kept in a folder that the caller names. A file's name is a hash of the sources, the
options, the compiler and the processor. Without a compiler, or if it fails, the caller uses PyTorch
alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from textmill.engine.kernels.interface import InterfaceMismatch, declare

OPTIONS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-shared",
    "-fPIC",
    "-pthread",
)
COMPILERS = ("g++", "clang++", "c++")
COMPILE_SECONDS = 180.0


class NoKernels(Exception):
    """The kernels are not available; the message says why."""


def kernels(folder: Path) -> ctypes.CDLL:
    """Load the library, and build it first if the folder does not contain it.

    Raises:
        NoKernels: there is no compiler, or its output cannot be used.
    """
    compiler = _compiler()
    sources = _sources()
    path = folder / f"decoder-{_key(sources, compiler)}.so"
    if not path.exists():
        _build(sources, compiler, path)
    try:
        return declare(ctypes.CDLL(str(path)))
    except (OSError, AttributeError, InterfaceMismatch) as error:
        raise NoKernels(f"{path} cannot be loaded: {error}") from error


def one_unit(names: Iterable[str]) -> str:
    """A source that includes all others.

    The standard library's headers take most of the time of compiling; this way they are read once.
    """
    return "".join(f'#include "{name}"\n' for name in sorted(names) if name.endswith(".cpp"))


def _sources() -> dict[str, bytes]:
    """The text of every source, by its path in this folder."""
    folder = files("textmill.engine.kernels")
    found = {f.name: f for f in folder.iterdir()}
    found |= {f"simd/{f.name}": f for f in folder.joinpath("simd").iterdir()}
    return {n: f.read_bytes() for n, f in found.items() if n.endswith((".h", ".cpp"))}


def processor() -> str:
    """The processor's name and its instruction sets, on which the built kernels depend."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    kept = ("model name", "flags", "Features", "CPU part")
    found = {line.split(":")[0].strip(): line for line in lines if line.startswith(kept)}
    return platform.machine() + "".join(sorted(found.values()))


def _compiler() -> str:
    named = os.environ.get("CXX")
    for name in (named,) if named else COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise NoKernels("no C++ compiler was found" if not named else f"CXX={named} was not found")


def _key(sources: dict[str, bytes], compiler: str) -> str:
    try:
        version = subprocess.run(  # noqa: S603 - the user's own compiler
            [compiler, "--version"], capture_output=True, check=True, timeout=COMPILE_SECONDS
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NoKernels(f"{compiler} does not run: {error}") from error
    parts = [name.encode() + b"\0" + text for name, text in sorted(sources.items())]
    parts += [" ".join(OPTIONS).encode(), version, processor().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _build(sources: dict[str, bytes], compiler: str, path: Path) -> None:
    """Compile beside the target and rename, so that no process loads an incomplete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        Path(folder, "simd").mkdir()
        for name, text in sources.items():
            Path(folder, name).write_bytes(text)
        unit, built = Path(folder, "unit.cpp"), Path(folder, "decoder.so")
        unit.write_text(one_unit(sources), encoding="utf-8")
        command = [compiler, *OPTIONS, str(unit), "-o", str(built)]
        try:
            done = subprocess.run(  # noqa: S603 - the user's own compiler
                command, capture_output=True, text=True, check=False, timeout=COMPILE_SECONDS
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise NoKernels(f"{compiler} does not run: {error}") from error
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            raise NoKernels(f"{compiler} failed: {(lines or ['no message'])[0][:200]}")
        built.replace(path)
