"""The models file as it stands now, for processes that run while models come and go.

Looks at the file whenever it is asked, which costs some microseconds, and reads it again when it
has changed: who registered a model may ask for it in the next moment. What was read last is kept in
the state folder too, so that a process that starts while the file is wrong serves the models that
the others serve. Knows nothing of what its readers do about a change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from dataclasses import asdict
from pathlib import Path

import structlog

from textmill.core.catalog.models_file import (
    DEFAULT_PATH,
    OWN_FILE,
    Catalog,
    ModelSpec,
    models_file,
    read_catalog,
)
from textmill.core.errors import SettingsError
from textmill.core.settings import Settings

KNOWN_FOLDER = "known-models"  # in the state folder; a file for each models file and TEXTMILL_SERVE
log = structlog.get_logger(__name__)


class LiveCatalog:
    """The present catalogue, for any thread.

    A file that has become wrong, or cannot be read, changes nothing: the last good catalogue stays,
    and the log has one warning. So does a file that was taken away: an editor may be about to put
    it back.
    """

    def __init__(self, settings: Settings, serve: tuple[str, ...] = ()) -> None:
        """Read the file for the first time; where it is wrong, take the last good catalogue.

        Args:
            settings: they tell which file.
            serve: names of the models that count, all where it is empty; a file without one of
                them is wrong.

        Raises:
            SettingsError: the file cannot be used, and no good one was read since ``up`` started.
        """
        self._settings = settings
        self._serve = serve
        self._memory = _Memory(settings, serve)
        self._problem: str | None = None
        self._looking = threading.Lock()
        remembered = self._memory.recall()
        self._path = models_file(settings)
        if remembered and self._path == DEFAULT_PATH and remembered[0] == settings.home / OWN_FILE:
            self._path = remembered[0]  # it was taken away, as in a running process
        self._seen = (self._path, _identity(self._path))  # before the reading, or it may be missed
        try:
            self._catalog = self._read(self._path)
        except SettingsError as error:
            if remembered is None or remembered[0] != self._path:
                raise
            self._catalog = remembered[1]
            self._refuse(error, "the models that were last read from it are served")

    @property
    def current(self) -> Catalog:
        """The catalogue as it stands; an object of its own for each state of the file."""
        self._look_unless_busy()
        return self._catalog

    @property
    def problem(self) -> str | None:
        """Why the file as it stands cannot be used; ``None`` where it can."""
        self._look_unless_busy()
        return self._problem

    def _look_unless_busy(self) -> None:
        if self._looking.acquire(blocking=False):  # nobody waits for the one that reads
            try:
                self._look()
            finally:
                self._looking.release()

    def _look(self) -> None:
        path = models_file(self._settings) if self._path == DEFAULT_PATH else self._path
        seen = (path, _identity(path))
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._catalog = self._read(path)
        except SettingsError as error:
            self._refuse(error, "the models stay as they are")
            return
        self._path = path
        self._problem = None
        log.info("models_file_read", path=str(path), models=list(self._catalog.names))

    def _read(self, path: Path) -> Catalog:
        catalog = read_catalog(path).served(self._serve)
        self._memory.keep(path, catalog)
        return catalog

    def _refuse(self, error: SettingsError, consequence: str) -> None:
        self._problem = str(error)
        log.warning("models_file_unusable", reason=str(error), consequence=consequence)


class _Memory:
    """The last good catalogue of one models file, on disk."""

    def __init__(self, settings: Settings, serve: tuple[str, ...]) -> None:
        asked = repr((str(settings.models_path), serve)).encode()
        name = hashlib.sha256(asked).hexdigest()[:16]
        self._file = settings.home / KNOWN_FOLDER / f"{name}.json"

    def recall(self) -> tuple[Path, Catalog] | None:
        """The file and what was read from it; ``None`` where nothing is known."""
        try:
            document = json.loads(self._file.read_text(encoding="utf-8"))
            models = tuple(ModelSpec(**entry) for entry in document["models"])
            return (Path(document["path"]), Catalog(models)) if models else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self, path: Path, catalog: Catalog) -> None:
        """Remember, where the state folder can be written; several processes may do so at once."""
        document = {"path": str(path), "models": [asdict(spec) for spec in catalog]}
        content = json.dumps(document).encode()
        part = self._file.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        with contextlib.suppress(OSError):
            if self._file.is_file() and self._file.read_bytes() == content:
                return
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part.write_bytes(content)
            part.replace(self._file)


def forget_known(settings: Settings) -> None:
    """Forget what was read before: a start by hand goes by the models file alone."""
    with contextlib.suppress(OSError):
        for file in (settings.home / KNOWN_FOLDER).iterdir():
            file.unlink()


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file's content, whether it is written over or put in its place."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
