"""Converted models that nothing needs are removed, and never one that a process uses."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernels import KERNEL_DIR
from tests.unit.engine.models.test_sources import bytes_to_unicode, written_gguf
from textmill.core.catalog.models_file import ModelSpec
from textmill.engine.models import converted_folders
from textmill.engine.models.converted_folders import (
    GRACE_SECONDS,
    Marker,
    RemovedFolder,
    read_marker,
    remove_unneeded,
    use,
    work_folder,
)
from textmill.engine.models.errors import ModelUnusable
from textmill.engine.models.loading import load
from textmill.engine.models.sources import find_prepared, is_of, prepare

ROOT = Path(__file__).parents[4]
NUM_BYTES = 5000


def made(cache: Path, name: str = "model-0123456789ab") -> Path:
    """A converted folder that was last used long ago."""
    folder = cache / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * NUM_BYTES)
    marker = folder / "prepared.json"
    marker.write_text(json.dumps({"source": "s", "adapter": None, "revision": "r"}))
    long_ago = time.time() - 2 * GRACE_SECONDS
    os.utime(marker, (long_ago, long_ago))
    return folder


def removed(cache: Path, needed: str = "", now: float | None = None) -> list[str]:
    return [folder.name for folder in remove_unneeded(cache, lambda n, _: n == needed, now)]


def later() -> float:
    return time.time() + 2 * GRACE_SECONDS


@contextmanager
def other_process(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A program that has printed its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


USES = """
import sys
from pathlib import Path
from textmill.engine.models.converted_folders import use
held = use(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""
CONVERTS = """
import sys
from pathlib import Path
from textmill.engine.models.converted_folders import use, work_folder
held = use(Path(sys.argv[1]))
work_folder(Path(sys.argv[1])).joinpath("model.safetensors").write_bytes(b"x")
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_folder_that_nothing_needs_is_removed_with_its_lock_file(tmp_path: Path) -> None:
    folder, other = made(tmp_path), made(tmp_path, "needed-0123456789ab")
    (tmp_path / "own-notes").mkdir()
    (tmp_path / "file.txt").touch()
    size = NUM_BYTES + (folder / "prepared.json").stat().st_size
    found = list(remove_unneeded(tmp_path, lambda name, _: name == other.name))
    assert found == [RemovedFolder(folder.name, size)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "file.txt", other.name, "own-notes"
    ]  # fmt: skip


def test_a_folder_that_was_used_in_the_last_hour_stays(tmp_path: Path) -> None:
    folder = made(tmp_path)
    held = use(folder)
    del held
    assert removed(tmp_path) == []
    assert removed(tmp_path, now=later()) == [folder.name]


def test_without_a_folder_of_models_nothing_is_removed(tmp_path: Path) -> None:
    assert removed(tmp_path / "none") == []


def test_a_folder_in_use_by_another_process_is_never_removed(tmp_path: Path) -> None:
    folder = made(tmp_path)
    with other_process(USES, folder) as process:
        assert removed(tmp_path, now=later()) == []
        assert (folder / "model.safetensors").stat().st_size == NUM_BYTES
        process.kill()
        process.wait()
    assert removed(tmp_path, now=later()) == [folder.name]


def test_a_folder_in_use_by_this_process_is_not_removed_either(tmp_path: Path) -> None:
    folder = made(tmp_path)
    held = use(folder)
    assert removed(tmp_path, now=later()) == []
    del held
    assert removed(tmp_path, now=later()) == [folder.name]


def test_a_conversion_that_runs_is_left_alone_and_one_that_died_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "model-0123456789ab"
    with other_process(CONVERTS, target) as process:
        assert removed(tmp_path, now=later()) == []
        process.kill()
        process.wait()
    (name,) = removed(tmp_path)  # without an hour's wait: it is half a folder
    assert name.startswith(".converting-model-0123456789ab-")
    assert list(tmp_path.iterdir()) == []


def test_what_a_conversion_of_an_earlier_version_left_is_removed_after_an_hour(
    tmp_path: Path,
) -> None:
    (tmp_path / ".converting-ab_cd012").mkdir()
    assert removed(tmp_path) == []
    assert removed(tmp_path, now=later()) == [".converting-ab_cd012"]
    assert list(tmp_path.iterdir()) == []


def test_a_removal_that_dies_leaves_nothing_under_the_folders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            removed(tmp_path)
    assert not folder.exists()
    assert removed(tmp_path) == [folder.name]
    assert list(tmp_path.iterdir()) == []


REMOVES = """
import sys, time
from pathlib import Path
from textmill.engine.models.converted_folders import remove_unneeded
print("ready", flush=True)
while True:
    for _ in remove_unneeded(Path(sys.argv[1]), lambda *_: False, time.time() + 1e6):
        pass
"""


def test_a_user_sees_a_whole_folder_or_none_while_another_process_removes(tmp_path: Path) -> None:
    num_whole = num_missing = 0
    with other_process(REMOVES, tmp_path):
        end = time.monotonic() + 60
        while (num_whole < 30 or num_missing < 30) and time.monotonic() < end:
            folder = tmp_path / "model-0123456789ab"
            held = use(folder)
            if not folder.exists():
                num_missing += 1
                work = work_folder(folder)
                made(work, "inner").rename(work / "renamed")
                (work / "renamed").rename(folder)
                work.rmdir()
            else:
                num_whole += 1
            for _ in range(20):
                assert read_marker(folder).revision == "r"
                assert (folder / "model.safetensors").stat().st_size == NUM_BYTES
            del held
    assert min(num_whole, num_missing) >= 30


def test_a_failed_conversion_leaves_no_lock_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelUnusable):
        prepare(str(path), None, tmp_path / "cache", lambda _: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_locked_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(converted_folders, "_lock", refuse)
    held = use(made(tmp_path))
    held.give_up()


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    vocabulary = ["<|endoftext|>", *bytes_to_unicode().values(), "th", "the"]
    path, _ = written_gguf(tmp_path / "tiny.gguf", "default", vocabulary, ["t h", "th e"])
    return path


def test_a_prepared_model_is_in_use_as_long_as_it_is_referenced(
    gguf_file: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    prepared = prepare(str(gguf_file), None, cache, lambda _: None)
    assert removed(cache, now=later()) == []
    again = find_prepared(str(gguf_file), None, cache, lambda _: None)
    assert again == prepared
    del prepared
    assert removed(cache, now=later()) == []
    name = again.folder.name if again is not None else ""
    del again
    assert removed(cache, now=later()) == [name]
    assert prepare(str(gguf_file), None, cache, lambda _: None).folder.name == name


def test_a_loaded_model_keeps_its_folder(gguf_file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    spec = ModelSpec("m", str(gguf_file), None, "float32", True, "")
    model = load(
        spec, cache_dir=cache, dtype="float32", num_slots=1, kernel_dir=KERNEL_DIR,
        report=lambda _: None,
    )  # fmt: skip
    assert removed(cache, now=later()) == []
    del model
    gc.collect()
    assert len(removed(cache, now=later())) == 1


def test_a_folder_is_of_an_entry_until_the_entrys_files_change(
    gguf_file: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    folder = prepare(str(gguf_file), None, cache, lambda _: None).folder
    marker = read_marker(folder)
    assert is_of(str(gguf_file), None, folder.name, marker, cache)
    assert is_of(str(gguf_file), "/some/adapter", folder.name, marker, cache)  # its base
    assert not is_of(str(tmp_path / "other.gguf"), None, folder.name, marker, cache)
    os.utime(gguf_file, (1, 1))
    assert not is_of(str(gguf_file), None, folder.name, marker, cache)
    gguf_file.unlink()  # perhaps on a disk that is not mounted now
    assert is_of(str(gguf_file), None, folder.name, marker, cache)


def test_folders_of_models_from_the_hub_stay_without_a_look_at_the_hub(tmp_path: Path) -> None:
    marker = Marker("/hub/models--owner--name/snapshots/1a", None, "r")
    assert is_of("owner/name", None, "1a-0123456789ab", marker, tmp_path)
    assert not is_of("owner/other", None, "1a-0123456789ab", marker, tmp_path)
