"""A worker removes converted models that the models file no longer needs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.unit.engine.models.test_sources import bytes_to_unicode, written_gguf
from textmill.core.settings import Settings
from textmill.engine.models.converted_folders import GRACE_SECONDS
from textmill.engine.models.sources import prepare
from textmill.worker.conversions import remove_stale


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a home with two converted models, both last used long ago; the file names one of them."""
    models = tmp_path / "models.toml"
    models.write_text('[[models]]\nname = "a"\nsource = "./a.gguf"\ndefault = true\n')
    vocabulary = ["<|endoftext|>", *bytes_to_unicode().values(), "th", "the"]
    for name in ("a", "b"):
        path, _ = written_gguf(tmp_path / f"{name}.gguf", "default", vocabulary, ["t h", "th e"])
        prepare(str(path), None, tmp_path / "home" / "models", lambda _: None)
    long_ago = time.time() - 2 * GRACE_SECONDS
    for lock in (tmp_path / "home" / "models").glob(".lock-*"):
        os.utime(lock, (long_ago, long_ago))
    return Settings.from_environment(
        {"TEXTMILL_HOME": str(tmp_path / "home"), "TEXTMILL_MODELS": str(models)}
    )


def folders(settings: Settings) -> list[str]:
    found = (settings.home / "models").iterdir()
    return sorted(path.name.partition("-")[0] for path in found if path.is_dir())


def test_the_folder_of_an_entry_stays_and_the_log_names_the_one_that_was_removed(
    settings: Settings,
) -> None:
    with capture_logs() as logs:
        remove_stale(settings)
        remove_stale(settings)
    assert folders(settings) == ["a"]
    (line,) = logs
    assert (line["event"], line["folder"][:2], line["mib"]) == ("conversion_removed", "b-", 0)
    text = json.dumps(line)
    assert str(settings.home) not in text


def test_while_the_models_file_is_invalid_nothing_is_removed(settings: Settings) -> None:
    assert settings.models_path is not None
    Path(settings.models_path).write_text("[[models]\n")
    remove_stale(settings)
    assert folders(settings) == ["a", "b"]
