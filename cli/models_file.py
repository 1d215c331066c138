"""Writes a model into the models file, atomically, and keeps its comments and layout.

The edited text is checked by the code that reads the file for serving, then replaces the file as a
whole, so that a worker never reads half of it. Knows nothing of the contents of a model's folder.
"""

from __future__ import annotations

import contextlib
import enum
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT

from textmill.cli.exits import CommandFailed
from textmill.cli.preflight import prepare_home
from textmill.core.catalog.models_file import (
    OWN_FILE,
    Catalog,
    models_file,
    parse_catalog,
    read_catalog,
)
from textmill.core.errors import SettingsError
from textmill.core.file_lock import file_lock
from textmill.core.settings import Settings


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """The entry of a model; ``dtype`` and ``description`` keep their current values if ``None``.

    Attributes:
        source: a Hub id, ``package:NAME``, or an absolute path.
        adapter: an absolute path; ``None`` if the model has no adapter.
    """

    name: str
    source: str
    adapter: str | None
    dtype: str | None
    description: str | None


class Outcome(enum.Enum):
    """How the file changed."""

    ADDED = "Added"
    REPLACED = "Replaced"
    UNCHANGED = "Unchanged"


@dataclass(frozen=True, slots=True)
class Registration:
    """How the file changed, and its present catalogue."""

    path: Path
    outcome: Outcome
    catalog: Catalog


def put_model(settings: Settings, entry: ModelEntry, *, makes_default: bool) -> Registration:
    """Write a model into the models file.

    If the packaged file is in use, the state folder gets a copy of it with the model.

    Raises:
        SettingsError: the file is invalid, or would be with this model; nothing was changed.
        CommandFailed: the file cannot be written.
    """
    target = settings.models_path or settings.home / OWN_FILE
    try:
        if settings.models_path is None:
            prepare_home(settings.home)
        real = Path(os.path.realpath(target))
        with file_lock(real.with_name(f".{real.name}.lock")):
            path = models_file(settings)
            served = read_catalog(path)
            was_there = entry.name in served.names
            before = path.read_text(encoding="utf-8")
            begun = before if path == target else _moved(before, served)
            after = _edited(begun, entry, target.parent, makes_default=makes_default)
            catalog = parse_catalog(after, target)
            if path == target and after == before:
                return Registration(target, Outcome.UNCHANGED, catalog)
            _replace(target, after)
    except OSError as error:
        raise CommandFailed(f"{target} cannot be written: {error.strerror or error}.") from error
    return Registration(target, Outcome.REPLACED if was_there else Outcome.ADDED, catalog)


def _moved(text: str, catalog: Catalog) -> str:
    """The packaged file for another folder, with its relative paths made absolute."""
    document = tomlkit.parse(text)
    tables: Any = document["models"]
    for table, spec in zip(tables, catalog, strict=True):
        for key, value in (("source", spec.source), ("adapter", spec.adapter)):
            if value is not None and table[key] != value:
                table[key] = value
    return tomlkit.dumps(document)


def _edited(text: str, entry: ModelEntry, folder: Path, *, makes_default: bool) -> str:
    try:
        document = tomlkit.parse(text)
        models: Any = document["models"]
        table = next((table for table in models if table["name"] == entry.name), None)
        is_new = table is None
        if table is None:
            table = tomlkit.table() if isinstance(models, AoT) else tomlkit.inline_table()
        _fill(table, entry, folder)
        if makes_default:
            for other in models:
                if other["name"] != entry.name:
                    other.pop("default", None)
            if table.get("default") is not True:
                table["default"] = True
        if is_new:
            models.append(table)
        return _spaced(tomlkit.dumps(document)) if is_new else tomlkit.dumps(document)
    except (TOMLKitError, ValueError) as error:
        raise CommandFailed(f"The models file cannot be edited: {error}.") from error


def _fill(table: Any, entry: ModelEntry, folder: Path) -> None:
    values = {
        "name": entry.name,
        "source": _written(entry.source, folder),
        "adapter": None if entry.adapter is None else _written(entry.adapter, folder),
    }
    given = {"dtype": entry.dtype, "description": entry.description}
    for name, value in (values | {k: v for k, v in given.items() if v is not None}).items():
        if value is None:
            table.pop(name, None)
        elif table.get(name) != value:
            table[name] = value


def _written(source: str, folder: Path) -> str:
    """The source as it is written: relative if inside the file's folder, so that both can move."""
    path = Path(source)
    if not path.is_absolute() or not path.is_relative_to(folder):
        return source
    inner = path.relative_to(folder).as_posix()
    return source if inner.startswith("~") else f"./{inner}"


def _spaced(text: str) -> str:
    """The text with an empty line before its last table."""
    head, mark, last = text.rpartition("[[models]]")
    return head.rstrip("\n") + "\n\n" + mark + last if mark and head.strip() else text


def _replace(target: Path, text: str) -> None:
    """Write a temporary file, read it back, and rename it over the target."""
    real = Path(os.path.realpath(target))  # a link is kept
    part = real.with_name(f".{real.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            _copy_rights(descriptor, real)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        if parse_catalog(part.read_text(encoding="utf-8"), target) != parse_catalog(text, target):
            raise SettingsError(f"{part} does not contain what was written; is the disk full?")
        part.replace(real)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(real.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the name survives a loss of power
    finally:
        os.close(folder)


def _copy_rights(descriptor: int, old: Path) -> None:
    """Give the new file the mode and owner of the old one."""
    with contextlib.suppress(FileNotFoundError):
        found = old.stat()
        os.fchmod(descriptor, stat.S_IMODE(found.st_mode))
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, found.st_uid, found.st_gid)
