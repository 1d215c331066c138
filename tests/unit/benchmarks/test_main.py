"""The command line of the benchmarks: sections, failures, the file it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks.figures import Section
from benchmarks.processes import BenchmarkError, Workspace


def _fine(space: Workspace) -> Section:
    section = Section("fine", "a constant")
    section.add("one", "s", [1.0])
    return section


def _broken(space: Workspace) -> Section:
    raise BenchmarkError("no server")


def test_an_unknown_section_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["nonsense"])
    assert "'nonsense'" in capsys.readouterr().err


def test_a_section_that_fails_leaves_the_others_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "SECTIONS", {"broken": _broken, "fine": _fine})
    path = tmp_path / "figures.json"
    assert program.main(["--json", str(path)]) == 1
    document = json.loads(path.read_text())
    assert [section["name"] for section in document["sections"]] == ["fine"]
    assert document["sections"][0]["rows"][0]["median"] == 1.0
    assert "not measured: broken: no server" in capsys.readouterr().err


def test_the_machine_is_described_without_its_name() -> None:
    assert set(program.machine()) == {"at", "commit", "python", "system", "cores", "load"}
