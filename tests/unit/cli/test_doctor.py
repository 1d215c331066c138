from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from textmill.cli.doctor import Finding, Verdict, examine
from textmill.cli.main import textmill
from textmill.cli.roles import Role
from textmill.core.database.connections import make_engine
from textmill.core.problems import Subject, report
from textmill.core.settings import Settings
from textmill.engine.kernels import compilers
from textmill.engine.kernels.instruction_sets import INSTRUCTION_SETS, available_sets
from textmill.migrations.upgrade import upgrade


def findings(environment: dict[str, str]) -> dict[str, Finding]:
    return {item.subject: item for item in examine(Settings.from_environment(environment))}


def verdicts(environment: dict[str, str]) -> dict[str, Verdict]:
    return {subject: item.verdict for subject, item in findings(environment).items()}


def environment(tmp_path: Path) -> dict[str, str]:
    return {"TEXTMILL_HOME": str(tmp_path), "TEXTMILL_PORT": "59321"}


def test_a_sound_machine_has_no_failure(tmp_path: Path) -> None:
    found = verdicts(environment(tmp_path))
    assert Verdict.FAIL not in found.values()
    assert set(found) == {
        *("settings", "python", "home", "disk", "memory", "port"),
        *("kernels", "redis", "database", "model"),
    }


@pytest.mark.parametrize(
    ("role", "absent"),
    [("web", {"memory", "kernels", "redis", "model"}), ("worker", {"port", "redis"})],
)
def test_checks_of_a_role_that_is_not_installed_do_not_fail(
    tmp_path: Path, role: Role, absent: set[str]
) -> None:
    models = tmp_path / "models.toml"
    source = "package:no_such_package" if role == "web" else str(tmp_path)
    models.write_text(f'[[models]]\nname = "m"\nsource = "{source}"\n')
    settings = Settings.from_environment(environment(tmp_path))
    found = list(examine(settings, frozenset({role})))
    assert {item.subject for item in found if item.verdict is Verdict.ABSENT} == absent
    assert not any(item.verdict is Verdict.FAIL for item in found)


def test_an_invalid_models_file_fails_without_a_worker_too(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text("models = 3")
    settings = Settings.from_environment(environment(tmp_path))
    found = {item.subject: item.verdict for item in examine(settings, frozenset({"web"}))}
    assert found["models"] is Verdict.FAIL


def test_the_instruction_set_and_the_compiler_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\necho My compiler 7.1")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    chosen = available_sets()[-1].name
    found = findings(environment(tmp_path) | {"TEXTMILL_KERNELS_ISA": chosen})["kernels"]
    assert found.verdict is Verdict.OK
    assert found.detail == f"{chosen}, by My compiler 7.1; compiled at the next start"


def test_a_machine_without_a_compiler_is_warned_and_told_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compilers, "ZIG", "no_such_package")
    found = findings(environment(tmp_path))["kernels"]
    assert found.verdict is Verdict.WARN
    assert found.detail == "PyTorch computes alone and slower: no C++ compiler was found"
    assert "pip install ziglang" in found.remedy
    off = findings(environment(tmp_path) | {"TEXTMILL_KERNELS": "off"})["kernels"]
    assert off.verdict is Verdict.OK
    assert "TEXTMILL_KERNELS" in off.detail


def test_an_instruction_set_that_the_processor_lacks_is_a_failure(tmp_path: Path) -> None:
    absent = {item.name for item in INSTRUCTION_SETS} - {item.name for item in available_sets()}
    found = findings(environment(tmp_path) | {"TEXTMILL_KERNELS_ISA": absent.pop()})["kernels"]
    assert found.verdict is Verdict.FAIL
    assert available_sets()[-1].name in found.detail


def test_a_migrated_database_is_seen_and_an_older_one_named(tmp_path: Path) -> None:
    upgrade(f"sqlite:///{tmp_path}/textmill.db")
    assert verdicts(environment(tmp_path))["database"] is Verdict.OK
    (tmp_path / "empty.db").touch()
    older = {"TEXTMILL_DATABASE_URL": f"sqlite:///{tmp_path}/empty.db"}
    assert verdicts(environment(tmp_path) | older)["database"] is Verdict.WARN


def test_a_model_that_is_missing_fails_and_the_status_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models.toml"
    models.write_text('[[models]]\nname = "m"\nsource = "./nowhere"\ndefault = true\n')
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TEXTMILL_MODELS", str(models))
    result = CliRunner().invoke(textmill, ["doctor"])
    assert result.exit_code == 1
    assert "FAIL  model" in result.output
    assert "correct the models file" in result.output


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    upgrade(f"sqlite:///{tmp_path}/textmill.db")
    engine = make_engine(f"sqlite:///{tmp_path}/textmill.db")
    report(engine, Subject("there", "model", "tiny"), "It is cut off.", 60.0)
    engine.dispose()
    found = list(examine(Settings.from_environment(environment(tmp_path))))
    [told] = [item for item in found if item.subject == "left out"]
    assert told.verdict is Verdict.WARN
    assert told.detail == "The model tiny is left out: It is cut off. (on there)"
