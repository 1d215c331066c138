"""The kernels are built once for an instruction set, by the first compiler that can."""

from __future__ import annotations

import platform
import stat
import sys
from pathlib import Path

import pytest

from tests.kernels import KERNEL_DIR, library
from textmill.core.errors import SettingsError
from textmill.engine.kernels import build, compilers
from textmill.engine.kernels.build import NoKernels, kernels
from textmill.engine.kernels.compilers import Compiler, NoCompiler, find_compilers
from textmill.engine.kernels.instruction_sets import INSTRUCTION_SETS, available_sets

FAILS = (
    "#!/bin/sh\n[ $1 = --version ] && echo broken 1.0 && exit 0\necho 'error: no AVX' >&2\nexit 1"
)
BREAKS = "#!/bin/sh\nexit 1"
X86 = {item.name: item for item in INSTRUCTION_SETS if item.machine == "x86_64"}


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def without_compilers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(compilers, "ZIG", "no_such_package")


def test_a_failing_compiler_is_reported_with_its_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(program(tmp_path, "c++", FAILS)))
    with pytest.raises(NoKernels, match="no AVX"):
        kernels(tmp_path / "kernels")
    assert not list((tmp_path / "kernels").iterdir())


def test_a_compiler_that_fails_is_followed_by_the_next_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_compilers(monkeypatch, tmp_path / "bin")
    program(tmp_path / "bin", "g++", FAILS)
    program(tmp_path / "bin", "clang++", FAILS.replace("AVX", "NEON"))
    with pytest.raises(NoKernels, match=r"no AVX; .*no NEON"):
        kernels(tmp_path / "kernels")


def test_without_a_compiler_the_message_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_compilers(monkeypatch, tmp_path / "bin")
    with pytest.raises(NoKernels, match=r"no C\+\+ compiler .*: install .* pip install ziglang"):
        kernels(tmp_path / "kernels")


def test_a_compiler_that_does_not_run_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_compilers(monkeypatch, tmp_path / "bin")
    program(tmp_path / "bin", "g++", BREAKS)  # as macOS's clang++ without the developer tools
    with pytest.raises(NoCompiler, match=r"bin/g\+\+ does not run"):
        next(find_compilers())


def test_a_compiler_with_two_names_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_compilers(monkeypatch, tmp_path / "bin")
    real = program(tmp_path / "bin", "g++", FAILS)
    (tmp_path / "bin" / "c++").symlink_to(real)
    assert [found.command for found in find_compilers()] == [(str(real),)]


def test_ziglang_comes_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_compilers(monkeypatch, tmp_path / "bin")
    package = tmp_path / "packages" / "zig_for_tests"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("print('clang version 99.1')")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setattr(compilers, "ZIG", package.name)
    program(tmp_path / "bin", "clang++", FAILS)
    first, last = find_compilers()
    assert (first.version, first.is_zig) == ("broken 1.0", False)
    assert last.command == (sys.executable, "-m", "zig_for_tests", "c++")
    assert last.name == "zig_for_tests, clang version 99.1"
    monkeypatch.setenv("CXX", "clang++")  # the only choice
    assert [found.is_zig for found in find_compilers()] == [False]


def test_zig_gets_its_own_names_and_an_old_c_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    zig = Compiler(("python", "-m", "ziglang", "c++"), "clang 1", is_zig=True)
    assert zig.target(X86["avx2"]) == ("-target", "x86_64-linux-gnu.2.17", "-mcpu=x86_64_v3")
    assert zig.environment(tmp_path)["ZIG_GLOBAL_CACHE_DIR"] == str(tmp_path)
    assert "ZIG_GLOBAL_CACHE_DIR" not in Compiler(("g++",), "g++ 1").environment(tmp_path)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert zig.target(X86["avx2"]) == ("-mcpu=x86_64_v3",)


def test_floating_point_is_never_left_to_the_compiler() -> None:
    assert "-ffp-contract=off" in build.OPTIONS
    options = {*build.OPTIONS, *(word for item in INSTRUCTION_SETS for word in item.options)}
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"} & options
    assert not [word for word in options if "native" in word]


def test_kernels_are_built_once_for_each_set_and_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library()
    built = {path.name: path.stat().st_mtime_ns for path in KERNEL_DIR.glob("*.so")}
    reports: list[str] = []
    found = kernels(KERNEL_DIR, report=reports.append)
    assert built == {path.name: path.stat().st_mtime_ns for path in KERNEL_DIR.glob("*.so")}
    assert found.instruction_set == available_sets()[0].name
    assert found.path.name.startswith(f"decoder-{found.instruction_set}-")
    assert found.path.name in built
    assert reports == []
    sets = [item for item in INSTRUCTION_SETS if item.machine == available_sets()[0].machine]
    makers = [Compiler(("g++",), "g++ 12"), Compiler(("g++",), "g++ 13")]
    files = {build.built_file(tmp_path, item, maker) for item in sets for maker in makers}
    assert len(files) == len(sets) * len(makers)


def test_a_set_that_the_processor_lacks_is_an_error_that_names_what_it_has(tmp_path: Path) -> None:
    absent = {item.name for item in INSTRUCTION_SETS} - {item.name for item in available_sets()}
    with pytest.raises(SettingsError, match=f"does not have; it has .*{available_sets()[-1].name}"):
        kernels(tmp_path, absent.pop())


def test_the_folder_and_the_report_are_used_for_a_first_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a compiler that writes an empty file, which cannot be loaded."""
    text = "#!/bin/sh\n[ $1 = --version ] && echo quick 1 && exit 0\n"
    text += "while [ $# -gt 1 ]; do shift; done\n: > $1"
    monkeypatch.setenv("CXX", str(program(tmp_path, "c++", text)))
    reports: list[str] = []
    with pytest.raises(NoKernels, match="cannot be loaded"):
        kernels(tmp_path / "kernels", available_sets()[-1].name, reports.append)
    assert len(reports) == 1
    assert "with quick 1, once" in reports[0]
    (made,) = (tmp_path / "kernels").iterdir()
    assert stat.S_ISREG(made.stat().st_mode)
