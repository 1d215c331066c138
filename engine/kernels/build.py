"""Compile the kernels once for this machine's instruction set, and load them.

Built files are kept in a folder that the caller names. A file's name contains the instruction set
and a hash of the sources, the options and the compiler, so processors that differ may share a
folder. Without a compiler, or if it fails, the caller uses PyTorch alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from textmill.engine.kernels.compilers import Compiler, NoCompiler, find_compilers
from textmill.engine.kernels.instruction_sets import AUTO, InstructionSet, choose
from textmill.engine.kernels.interface import InterfaceMismatch, declare

# What a product or a sum is rounded to may not depend on the compiler: it never fuses them on its
# own, nor changes their order.
OPTIONS = (
    "-std=c++20",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-shared",
    "-fPIC",
    "-pthread",
)
COMPILE_SECONDS = 900.0  # zig takes one minute of a processor, and processors may be shared
Report = Callable[[str], None]


class NoKernels(Exception):
    """The kernels are not available; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Kernels:
    """The loaded kernels.

    Attributes:
        library: their functions, see ``interface``.
        path: the file.
        instruction_set: the name of the set that they use.
        compiler: the compiler that made them, and its version.
    """

    library: ctypes.CDLL
    path: Path
    instruction_set: str
    compiler: str


def kernels(folder: Path, instruction_set: str = AUTO, report: Report = lambda _: None) -> Kernels:
    """Load the kernels, and build them first if the folder does not contain them.

    Args:
        folder: of built files.
        instruction_set: ``auto``, or the name of a set.
        report: is called with a sentence before they are compiled.

    Raises:
        NoKernels: there is no compiler, or its output cannot be used.
        SettingsError: the processor does not have the instruction set.
    """
    chosen = choose(instruction_set)
    sources = _sources()
    problems = []
    candidates = []
    try:
        for compiler in find_compilers():
            path = built_file(folder, chosen, compiler, sources)
            candidates.append((compiler, path))
            if path.exists():
                return _load(path, chosen, compiler)
    except NoCompiler as error:
        raise NoKernels(str(error)) from error
    for compiler, path in candidates:
        report(
            f"compiling the kernels for {chosen.name} with {compiler.name}, once; this takes about"
            f" {compiler.usual_seconds} s"
        )
        try:
            _build(sources, compiler, chosen, path)
            return _load(path, chosen, compiler)
        except NoKernels as error:
            problems.append(str(error))
    raise NoKernels("; ".join(problems))


def _load(path: Path, instruction_set: InstructionSet, compiler: Compiler) -> Kernels:
    try:
        library = declare(ctypes.CDLL(str(path)))
    except (OSError, AttributeError, InterfaceMismatch) as error:
        raise NoKernels(f"{path} cannot be loaded: {error}") from error
    return Kernels(library, path, instruction_set.name, compiler.name)


def built_file(
    folder: Path,
    instruction_set: InstructionSet,
    compiler: Compiler,
    sources: dict[str, bytes] | None = None,
) -> Path:
    """The file that a compiler's kernels are kept in; it may be missing."""
    parts = [name.encode() + b"\0" + text for name, text in sorted((sources or _sources()).items())]
    options = (*OPTIONS, *compiler.target(instruction_set))
    parts += [" ".join(options).encode(), compiler.name.encode()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    return folder / f"decoder-{instruction_set.name}-{key}.so"


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


def _build(
    sources: dict[str, bytes], compiler: Compiler, instruction_set: InstructionSet, path: Path
) -> None:
    """Compile beside the target and rename, so that no process loads an incomplete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        Path(folder, "simd").mkdir()
        for name, text in sources.items():
            Path(folder, name).write_bytes(text)
        unit, built = Path(folder, "unit.cpp"), Path(folder, "decoder.so")
        unit.write_text(one_unit(sources), encoding="utf-8")
        options = (*compiler.target(instruction_set), *OPTIONS)
        _run(compiler, [*options, str(unit), "-o", str(built)], Path(folder, "cache"))
        built.replace(path)


def _run(compiler: Compiler, arguments: list[str], cache: Path) -> None:
    name = compiler.command[0] if not compiler.is_zig else compiler.name
    try:
        done = subprocess.run(  # noqa: S603 - the user's own compiler
            [*compiler.command, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=COMPILE_SECONDS,
            env=compiler.environment(cache),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise NoKernels(f"{name} does not run: {error}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line]
        raise NoKernels(f"{name} failed: {(lines or ['no message'])[0][:200]}")
