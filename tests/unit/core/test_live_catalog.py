"""The current models file: the effects of a change, an error and an absence."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from textmill.core.catalog.live import KNOWN_FOLDER, LiveCatalog, forget_known
from textmill.core.catalog.models_file import (
    DEFAULT_PATH,
    MAX_FILE_BYTES,
    OWN_FILE,
    models_file,
    read_catalog,
)
from textmill.core.errors import SettingsError
from textmill.core.settings import Settings


def settings(home: Path, path: Path | None = None) -> Settings:
    environment = {"TEXTMILL_HOME": str(home)}
    if path is not None:
        environment["TEXTMILL_MODELS"] = str(path)
    return Settings.from_environment(environment)


def write(path: Path, *names: str) -> None:
    """Put a file in the place of the old one, as `textmill register` does."""
    part = path.with_suffix(".part")
    part.write_text(
        "".join(f'[[models]]\nname = "{name}"\nsource = "x/{name}"\n' for name in names)
    )
    part.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "models.toml", "a")
    return tmp_path / "models.toml"


@pytest.fixture(autouse=True)
def _reset_structlog() -> None:
    structlog.reset_defaults()


def test_the_file_is_the_one_set_or_the_state_folders_or_the_packaged_one(tmp_path: Path) -> None:
    own = tmp_path / "home" / OWN_FILE
    own.parent.mkdir()
    assert models_file(settings(own.parent)) == DEFAULT_PATH
    write(own, "mine")
    assert models_file(settings(own.parent)) == own
    assert models_file(settings(own.parent, tmp_path / "set.toml")) == tmp_path / "set.toml"


def test_a_file_of_the_state_folder_that_leads_nowhere_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / OWN_FILE).symlink_to(tmp_path / "gone.toml")
    with pytest.raises(SettingsError, match="No such file"):
        read_catalog(models_file(settings(tmp_path)))


def test_a_change_is_seen_at_once(path: Path) -> None:
    live = LiveCatalog(settings(path.parent, path))
    assert list(live.current.names) == ["a"]
    write(path, "a", "b")
    assert list(live.current.names) == ["a", "b"]
    assert live.current is live.current  # the same state is the same object


@pytest.mark.parametrize(
    "text", ["[[models]\n", '[[models]]\nname = "a"\n', "", "\ud800", "[" * 9999]
)
def test_a_wrong_file_leaves_the_models_as_they_are_and_is_logged_once(
    path: Path, text: str
) -> None:
    live = LiveCatalog(settings(path.parent, path))
    first = live.current
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with capture_logs() as logs:
        for _ in range(3):
            assert live.current is first
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("models_file_unusable", "warning")
    ]
    assert str(path) in logs[0]["reason"]
    write(path, "c")
    assert live.current.names == ("c",)


def test_a_file_that_was_taken_away_leaves_the_models_as_they_are(path: Path) -> None:
    live = LiveCatalog(settings(path.parent, path))
    path.unlink()
    assert live.current.names == ("a",)
    write(path, "b")
    assert live.current.names == ("b",)


def test_a_file_that_appears_in_the_state_folder_takes_the_packaged_ones_place(
    tmp_path: Path,
) -> None:
    live = LiveCatalog(settings(tmp_path))
    assert live.current == read_catalog(DEFAULT_PATH)
    write(tmp_path / OWN_FILE, "mine")
    assert live.current.names == ("mine",)
    (tmp_path / OWN_FILE).unlink()  # an editor may be about to put it back
    assert live.current.names == ("mine",)


def test_a_change_of_equal_length_and_instant_is_seen_by_the_file_itself(path: Path) -> None:
    live = LiveCatalog(settings(path.parent, path))
    before = path.stat()
    keeper = path.with_suffix(".old")
    os.link(path, keeper)  # so that the new file cannot get the old one's number
    write(path, "b")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert live.current.names == ("b",)


def test_only_the_served_models_count_and_none_of_them_may_go(path: Path) -> None:
    write(path, "a", "b")
    live = LiveCatalog(settings(path.parent, path), serve=("a",))
    assert live.current.names == ("a",)
    write(path, "b", "c")
    assert live.current.names == ("a",)


def test_the_start_is_refused_where_the_file_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="gone"):
        LiveCatalog(settings(tmp_path, tmp_path / "gone.toml"))


def test_threads_that_look_at_once_read_the_file_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveCatalog(settings(path.parent, path))
    inside, may_go = threading.Event(), threading.Event()
    num_reads = []

    def slow(file: Path) -> object:
        num_reads.append(file)
        inside.set()
        assert may_go.wait(10)
        return read_catalog(file)

    monkeypatch.setattr("textmill.core.catalog.live.read_catalog", slow)
    write(path, "b")
    thread = threading.Thread(target=lambda: live.current)
    thread.start()
    assert inside.wait(10)
    assert live.current.names == ("a",)  # no thread waits for the one that reads
    may_go.set()
    thread.join(10)
    assert live.current.names == ("b",)
    assert len(num_reads) == 1


# ---- a start while the file is wrong --------------------------------------------------------


def broken(path: Path, how: str) -> None:
    path.unlink()
    if how == "no TOML":
        path.write_text("[[models]\nname=")
    elif how == "a folder":
        path.mkdir()
    elif how == "no UTF-8":
        path.write_bytes(b'[[models]]\nname = "\xff"\n')
    elif how == "huge":
        path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    elif how == "a pipe":
        os.mkfifo(path)
    elif how == "a link to itself":
        path.symlink_to(path)
    elif how == "endless":
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "how",
    ["no TOML", "a folder", "no UTF-8", "huge", "a pipe", "a link to itself", "endless", "gone"],
)
@pytest.mark.parametrize("place", ["set", "own"])
def test_a_process_that_starts_while_the_file_is_wrong_serves_what_was_read_last(
    tmp_path: Path, how: str, place: str
) -> None:
    own = tmp_path / "home" / OWN_FILE
    own.parent.mkdir()
    path = tmp_path / "set.toml" if place == "set" else own
    write(path, "a", "b")
    chosen = settings(own.parent, path if place == "set" else None)
    running = LiveCatalog(chosen)
    assert running.problem is None
    broken(path, how)
    with capture_logs() as logs:
        started = LiveCatalog(chosen)
        assert started.current == running.current
        assert started.current.names == ("a", "b")
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "models_file_unusable"
    ] * 2  # once a process
    for live in (running, started):
        assert str(path) in str(live.problem)
    if path.is_dir():
        path.rmdir()
    write(path, "c")
    for live in (running, started):
        assert live.current.names == ("c",)
        assert live.problem is None


def test_a_served_model_that_went_from_the_file_is_served_on_by_a_process_that_starts(
    path: Path,
) -> None:
    write(path, "a", "b")
    chosen = settings(path.parent, path)
    LiveCatalog(chosen, serve=("a",))
    write(path, "b")
    started = LiveCatalog(chosen, serve=("a",))
    assert started.current.names == ("a",)
    assert "TEXTMILL_SERVE names the model 'a'" in str(started.problem)
    assert LiveCatalog(chosen).current.names == ("b",)  # and other users are unaffected


def test_another_file_is_not_answered_with_what_this_one_said(path: Path, tmp_path: Path) -> None:
    LiveCatalog(settings(tmp_path, path))
    with pytest.raises(SettingsError, match="gone"):
        LiveCatalog(settings(tmp_path, tmp_path / "gone.toml"))


def test_what_was_read_before_is_forgotten_at_a_start_by_hand(path: Path) -> None:
    chosen = settings(path.parent, path)
    LiveCatalog(chosen)
    forget_known(chosen)
    path.write_text("[[models]")
    with pytest.raises(SettingsError, match="TOML"):
        LiveCatalog(chosen)
    forget_known(settings(path.parent / "no home", path))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"path": "x", "models": [{}]}', b"\xff"])
def test_a_memory_that_is_broken_is_none(path: Path, content: bytes) -> None:
    chosen = settings(path.parent, path)
    LiveCatalog(chosen)
    [memory] = (path.parent / KNOWN_FOLDER).iterdir()
    memory.write_bytes(content)
    assert LiveCatalog(chosen).current.names == ("a",)
    memory.write_bytes(content)
    path.write_text("[[models]")
    with pytest.raises(SettingsError, match="TOML"):
        LiveCatalog(chosen)


def test_a_home_that_cannot_be_written_costs_the_memory_alone(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    chosen = settings(tmp_path / "file" / "home", path)
    assert LiveCatalog(chosen).current.names == ("a",)
