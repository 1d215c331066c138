"""The set-up installs a C++ compiler where there is none, and goes on if it cannot."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from textmill.engine.kernels import compilers

ROOT = Path(__file__).parents[3]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, on a machine without compilers and with an empty environment."""
    spec = importlib.util.spec_from_file_location(
        "setup_environment", ROOT / "scripts" / "setup_environment.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    return module


def calls_of_pip(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(script, "_pip", lambda *arguments: calls.append(arguments))
    return calls


def add_program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


def test_ziglang_is_installed_by_its_hash_where_there_is_no_compiler(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = calls_of_pip(script, monkeypatch)
    assert script._install_compiler()
    (call,) = calls
    assert call[-1] == "locks/compiler.txt"
    assert (ROOT / call[-1]).is_file()
    assert "--require-hashes" in call
    assert "installing ziglang" in capsys.readouterr().out


@pytest.mark.parametrize("name", compilers.NAMES)
def test_a_compiler_that_runs_is_enough(
    name: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of_pip(script, monkeypatch)
    add_program(tmp_path, name, "#!/bin/sh\nexit 0")
    assert not script._install_compiler()
    assert calls == []


def test_a_compiler_that_does_not_run_is_none(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of_pip(script, monkeypatch)
    add_program(tmp_path, "clang++", "#!/bin/sh\nexit 1")  # macOS without the developer tools
    assert script._install_compiler()
    assert len(calls) == 1


def test_ziglang_is_not_installed_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of_pip(script, monkeypatch)
    package = tmp_path / ".venv" / "lib" / "python3.12" / "site-packages" / "ziglang"
    package.mkdir(parents=True)
    (package / "__main__.py").touch()
    assert not script._install_compiler()
    assert calls == []


def test_a_named_compiler_is_the_users_choice(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of_pip(script, monkeypatch)
    monkeypatch.setenv("CXX", "my-c++")
    assert not script._install_compiler()
    assert calls == []


def test_without_a_network_the_setup_goes_on_and_says_what_to_do(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: str) -> None:
        raise script.SetupError("pip failed")

    monkeypatch.setattr(script, "_pip", failing)
    assert not script._install_compiler()
    assert "install g++ or clang++" in capsys.readouterr().out


def test_the_setup_looks_for_the_compilers_that_the_engine_uses(script: ModuleType) -> None:
    assert script.COMPILERS == compilers.NAMES
