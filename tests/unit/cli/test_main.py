from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from textmill.cli.main import textmill

COMMANDS = ["doctor", "finetune", "generate", "migrate", "register", "up", "web", "worker"]


@pytest.mark.parametrize("command", ["up", "web", "worker", "migrate", "doctor"])
def test_a_bad_setting_is_one_sentence_and_status_78(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEXTMILL_PROT", "9000")
    result = CliRunner().invoke(textmill, [command])
    assert result.exit_code == 78
    assert result.output == (
        "textmill: TEXTMILL_PROT is not a setting of Textmill. Did you mean TEXTMILL_PORT?\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["up", "web"])
def test_a_bad_models_file_is_refused_before_anything_starts(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEXTMILL_MODELS", "missing.toml")
    result = CliRunner().invoke(textmill, [command])
    assert result.exit_code == 78
    assert "missing.toml" in result.output


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(textmill, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f"  {command} " in result.output


def test_importing_the_command_loads_nothing_heavy() -> None:
    heavy = {"flask", "torch", "transformers", "celery", "sqlalchemy", "h11", "redis"}
    code = f"import sys, textmill.cli.main; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_migrate_brings_a_database_to_the_newest_schema(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEXTMILL_HOME", str(tmp_path))
    for _ in range(2):
        result = CliRunner().invoke(textmill, ["migrate"])
        assert result.exit_code == 0, result.output
    assert (tmp_path / "textmill.db").exists()


def test_a_database_that_cannot_be_reached_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEXTMILL_HOME", str(tmp_path))
    monkeypatch.setenv("TEXTMILL_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    result = CliRunner().invoke(textmill, ["migrate"])
    assert result.exit_code == 1
    assert "TEXTMILL_DATABASE_URL" in result.output
    assert result.output.count("\n") == 1


def test_web_names_the_port_that_is_in_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("TEXTMILL_HOME", str(tmp_path))
        monkeypatch.setenv("TEXTMILL_PORT", str(port))
        result = CliRunner().invoke(textmill, ["web"])
    assert result.exit_code == 1
    assert f"Port {port} on 127.0.0.1 is in use" in result.output
