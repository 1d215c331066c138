"""Writing the models file: what people wrote stays, and it is written for good or not at all."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from textmill.cli.exits import CommandFailed
from textmill.cli.models_file import ModelEntry, Outcome, put_model
from textmill.core.catalog.models_file import DEFAULT_PATH, OWN_FILE, read_catalog
from textmill.core.errors import SettingsError
from textmill.core.settings import Settings

COMMENTED = """\
# Ours; ask Anna before you change it.

[[models]]
name = "first"   # the one that everybody knows
source = 'someone/first'
dtype = "float32"
default = true
description = "What it is"

# An experiment.
[[models]]
name = "second"
source = "someone/second"
"""


def entry(name: str = "faq", source: str = "someone/base", **values: str | None) -> ModelEntry:
    optional = {"adapter": None, "dtype": None, "description": None} | values
    return ModelEntry(name=name, source=source, **optional)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "set" / "models.toml"
    path.parent.mkdir()
    path.write_text(COMMENTED)
    return path


@pytest.fixture
def settings(tmp_path: Path, path: Path) -> Settings:
    home = str(tmp_path / "home")
    return Settings.from_environment({"TEXTMILL_HOME": home, "TEXTMILL_MODELS": str(path)})


def test_a_model_is_added_and_nothing_else_changes(settings: Settings, path: Path) -> None:
    done = put_model(
        settings,
        entry(adapter="/models/faq", dtype="bfloat16", description="Ä “faq”"),
        makes_default=False,
    )
    assert (done.path, done.outcome) == (path, Outcome.ADDED)
    assert path.read_text() == COMMENTED + (
        '\n[[models]]\nname = "faq"\nsource = "someone/base"\nadapter = "/models/faq"\n'
        'dtype = "bfloat16"\ndescription = "Ä “faq”"\n'
    )
    assert done.catalog == read_catalog(path)
    assert done.catalog.default.name == "first"


def test_a_model_of_that_name_is_replaced_where_it_stands(settings: Settings, path: Path) -> None:
    done = put_model(settings, entry("first", "/elsewhere"), makes_default=False)
    assert done.outcome is Outcome.REPLACED
    assert path.read_text() == COMMENTED.replace("'someone/first'", '"/elsewhere"')


def test_an_adapter_that_is_none_any_more_goes(settings: Settings, path: Path) -> None:
    put_model(settings, entry("second", adapter="/models/faq"), makes_default=False)
    assert read_catalog(path).models[1].adapter == "/models/faq"
    put_model(settings, entry("second", "someone/second"), makes_default=False)
    assert path.read_text() == COMMENTED


def test_the_same_again_does_not_touch_the_file(settings: Settings, path: Path) -> None:
    put_model(settings, entry(), makes_default=True)
    before = path.stat()
    done = put_model(settings, entry(), makes_default=True)
    assert done.outcome is Outcome.UNCHANGED
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_new_default_takes_the_mark_of_the_old_one(settings: Settings, path: Path) -> None:
    put_model(settings, entry(), makes_default=True)
    assert [spec.is_default for spec in read_catalog(path)] == [False, False, True]
    assert "# the one that everybody knows" in path.read_text()


def test_a_file_of_inline_tables_stays_one(settings: Settings, path: Path) -> None:
    path.write_text('models = [{name = "a", source = "x/a"}]\n')
    done = put_model(settings, entry(), makes_default=True)
    assert done.catalog.names == ("a", "faq")
    assert "[[models]]" not in path.read_text()


def test_what_lies_below_the_file_is_written_relative_to_it(settings: Settings, path: Path) -> None:
    inside = path.parent / "models" / "faq"
    put_model(settings, entry(source=str(inside)), makes_default=False)
    assert 'source = "./models/faq"' in path.read_text()
    assert read_catalog(path).models[-1].source == str(inside)


# ---- the state folder's own file ------------------------------------------------------------


def test_where_the_packaged_file_is_served_the_state_folder_gets_one(tmp_path: Path) -> None:
    settings = Settings.from_environment({"TEXTMILL_HOME": str(tmp_path / "home")})
    packaged = DEFAULT_PATH.read_bytes()
    done = put_model(settings, entry(), makes_default=False)
    assert done.path == settings.home / OWN_FILE
    own = read_catalog(done.path)
    assert own.models[:-1] == read_catalog(DEFAULT_PATH).models
    assert own.names[-1] == "faq"
    assert DEFAULT_PATH.read_bytes() == packaged
    assert put_model(settings, entry("more"), makes_default=False).catalog.names[-2:] == (
        "faq",
        "more",
    )


def test_paths_of_the_packaged_file_mean_the_same_in_the_state_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = tmp_path / "package" / "default_models.toml"
    packaged.parent.mkdir()
    packaged.write_text(
        '# Packaged.\n[[models]]\nname = "a"\nsource = "package:p"\nadapter = "../adapters/a"\n'
        '[[models]]\nname = "b"\nsource = "./b"\n'
    )
    monkeypatch.setattr("textmill.core.catalog.models_file.DEFAULT_PATH", packaged)
    settings = Settings.from_environment({"TEXTMILL_HOME": str(tmp_path / "home")})
    done = put_model(settings, entry(), makes_default=False)
    before = read_catalog(packaged)
    assert done.catalog.models[:2] == before.models
    assert done.path.read_text().startswith("# Packaged.\n")


# ---- what goes wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"), [("no spaces", "must be 1 to 64"), ("", "name must be given")]
)
def test_what_the_server_would_refuse_is_not_written(
    settings: Settings, path: Path, name: str, words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        put_model(settings, entry(name), makes_default=False)
    assert path.read_text() == COMMENTED


def test_a_file_that_is_wrong_already_is_not_touched(settings: Settings, path: Path) -> None:
    path.write_text(COMMENTED + "[[models]\n")
    with pytest.raises(SettingsError, match=r"models\.toml is not valid TOML"):
        put_model(settings, entry(), makes_default=False)
    assert path.read_text() == COMMENTED + "[[models]\n"


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    missing = tmp_path / "gone" / "models.toml"
    settings = Settings.from_environment({"TEXTMILL_MODELS": str(missing)})
    with pytest.raises(CommandFailed, match=r"gone.*cannot be written: No such file"):
        put_model(settings, entry(), makes_default=False)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    settings: Settings, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(CommandFailed, match="No space left on device"):
        put_model(settings, entry(), makes_default=False)
    assert path.read_text() == COMMENTED
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".part"] == []


def test_rights_stay_and_a_link_stays_one(settings: Settings, path: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    path.replace(real)
    real.chmod(0o640)
    path.symlink_to(real)
    put_model(settings, entry(), makes_default=False)
    assert path.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert read_catalog(real).names[-1] == "faq"


def test_one_writer_waits_for_another(settings: Settings, path: Path) -> None:
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(
            target=put_model, args=(settings, entry()), kwargs={"makes_default": False}
        )
        thread.start()
        path.write_text(COMMENTED.replace("second", "third"))
        assert thread.is_alive()
    thread.join(30)
    assert read_catalog(path).names == ("first", "third", "faq")


def test_processes_that_write_at_once_lose_nothing(settings: Settings, path: Path) -> None:
    code = (
        "import os, sys\n"
        "from textmill.cli.models_file import ModelEntry, put_model\n"
        "from textmill.core.settings import Settings\n"
        "settings = Settings.from_environment(os.environ)\n"
        "for i in range(5):\n"
        "    entry = ModelEntry(f'{sys.argv[1]}-{i}', 'x/y', None, None, None)\n"
        "    put_model(settings, entry, makes_default=False)\n"
    )
    environment = {"PATH": os.environ["PATH"], **settings.to_environment()}
    writers = [
        subprocess.Popen([sys.executable, "-c", code, name], env=environment) for name in "abc"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert set(read_catalog(path).names) == {"first", "second"} | {
        f"{name}-{i}" for name in "abc" for i in range(5)
    }
