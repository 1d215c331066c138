"""The C++ compilers of this machine, and how each is called.

g++ and clang++ are taken from PATH. Where there are none, the Python package ``ziglang`` is used if
it is installed: it contains a whole clang, with the C and C++ libraries of its target.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from textmill.engine.kernels.instruction_sets import InstructionSet, machine_name

NAMES = ("g++", "clang++", "c++")
ZIG = "ziglang"
ZIG_SECONDS = 60  # about; most of it for its own C++ library
SECONDS = 15  # about, on one core
# Libraries that zig links work with this version of glibc and all later ones; it is that of
# manylinux2014, which PyTorch needs as well.
_GLIBC = "2.17"
_VERSION_SECONDS = 60.0
REMEDY = "install g++ or clang++, or run pip install ziglang"


class NoCompiler(Exception):
    """There is no compiler; the message says how to get one."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A compiler that runs.

    Attributes:
        command: the program and its first arguments.
        version: the first line that it prints about itself.
        is_zig: whether it is the package ``ziglang``.
    """

    command: tuple[str, ...]
    version: str
    is_zig: bool = False

    @property
    def name(self) -> str:
        """The compiler and its version, for people."""
        return f"{ZIG}, {self.version}" if self.is_zig else self.version

    @property
    def usual_seconds(self) -> int:
        """About how long it takes to compile the kernels."""
        return ZIG_SECONDS if self.is_zig else SECONDS

    def target(self, instruction_set: InstructionSet) -> tuple[str, ...]:
        """The options that allow an instruction set."""
        if not self.is_zig:
            return instruction_set.options
        is_glibc = platform.libc_ver()[0] == "glibc"
        target = ("-target", f"{machine_name()}-linux-gnu.{_GLIBC}") if is_glibc else ()
        return (*target, f"-mcpu={instruction_set.zig_cpu}")

    def environment(self, folder: Path) -> dict[str, str]:
        """The environment of a call; ``folder`` is temporary, and may get 100 MB."""
        caches = {"ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
        return {**os.environ, **(caches if self.is_zig else {})}


def find_compilers() -> Iterator[Compiler]:
    """The compilers that run, the first choice first. Each is looked for when it is asked for.

    ``CXX`` names the only choice, if it is set. ``ziglang`` is the last one.

    Raises:
        NoCompiler: there is none.
    """
    named = os.environ.get("CXX")
    programs = [found for name in ((named,) if named else NAMES) if (found := shutil.which(name))]
    num_found = 0
    links: set[str] = set()
    for program in programs:
        target = os.path.realpath(program)
        if target in links:  # c++ is another name of the system's first choice
            continue
        links.add(target)
        if (version := _version((program,))) is not None:
            num_found += 1
            yield Compiler((program,), version)
    if not named and importlib.util.find_spec(ZIG) is not None:
        command = (sys.executable, "-m", ZIG, "c++")
        if (version := _version(command)) is not None:
            num_found += 1
            yield Compiler(command, version, is_zig=True)
    if not num_found:
        raise NoCompiler(_nothing_found(named, programs))


def _nothing_found(named: str | None, broken: list[str]) -> str:
    if broken:
        return f"{broken[0]} does not run: repair it; or {REMEDY}"
    if named:
        return f"CXX={named} was not found: correct it, or unset it"
    return f"no C++ compiler was found: {REMEDY}"


def _version(command: tuple[str, ...]) -> str | None:
    """The first line of a compiler's version; ``None`` if it does not run."""
    try:
        done = subprocess.run(  # noqa: S603 - the user's own compiler
            [*command, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=_VERSION_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else command[0]
