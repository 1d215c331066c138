"""Compile the kernels once with the machine's own compiler, and load them.

Built files are kept in a folder of the caller's, named after what they were made from: source,
options, compiler and processor. Where there is no compiler, or it fails, the caller uses PyTorch
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
from importlib.resources import files
from pathlib import Path

OPTIONS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-shared",
    "-fPIC",
    "-pthread",
)
MAIN_SOURCE = "textmill.cpp"  # includes the others
COMPILERS = ("g++", "clang++", "c++")
COMPILE_SECONDS = 180.0


class NoKernels(Exception):
    """The kernels cannot be had here; the message says why."""


def kernels(folder: Path) -> ctypes.CDLL:
    """The library, built into the folder if it is not there yet.

    Raises:
        NoKernels: there is no compiler, or what it made cannot be used.
    """
    compiler = _compiler()
    sources = _sources()
    path = folder / f"decoder-{_key(sources, compiler)}.so"
    if not path.exists():
        _build(sources, compiler, path)
    try:
        return _declared(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        raise NoKernels(f"{path} cannot be loaded: {error}") from error


def _sources() -> dict[str, bytes]:
    found = files("textmill.engine.kernels").iterdir()
    return {f.name: f.read_bytes() for f in found if f.name.endswith((".h", ".cpp"))}


def processor() -> str:
    """What the kernels depend on of the processor: its name and its instruction sets."""
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
    """Compile beside the target and rename, so that nobody loads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for name, text in sources.items():
            Path(folder, name).write_bytes(text)
        made = Path(folder, "decoder.so")
        command = [compiler, *OPTIONS, str(Path(folder, MAIN_SOURCE)), "-o", str(made)]
        try:
            done = subprocess.run(  # noqa: S603 - the user's own compiler
                command, capture_output=True, text=True, check=False, timeout=COMPILE_SECONDS
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise NoKernels(f"{compiler} does not run: {error}") from error
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            raise NoKernels(f"{compiler} failed: {(lines or ['no message'])[0][:200]}")
        made.replace(path)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, integer, count = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    vector = (pointer, count)
    matrix = (pointer, count, count)
    arguments = {
        "textmill_has_int8_dot": [],
        "textmill_new": [pointer, ctypes.POINTER(pointer)],
        "textmill_free": [pointer],
        "textmill_set_product": [pointer, integer, integer, *matrix, *vector],
        "textmill_set_norm": [pointer, integer, integer, *vector, *vector],
        "textmill_set_layer": [pointer, integer, pointer, pointer, count, integer],
        "textmill_set_rotation": [pointer, pointer, pointer, count, count],
        "textmill_forward": [pointer, integer, *[pointer] * 3, integer, pointer, pointer],
        "textmill_choose": [pointer, integer, *[pointer] * 4],
        "textmill_seconds": [pointer, pointer],
    }
    for name, types in arguments.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, integer  # a Status
    library.textmill_free.restype = None
    return library
