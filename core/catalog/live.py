"""The current models file, for processes that run while models are added and removed.

Every access checks the file, which takes microseconds, and reads it again if it has changed, so
that a model can be used right after it was registered. The last valid catalogue is also stored in
the state folder, so that a process that starts while the file is invalid serves the same models as
the others. Knows nothing of what its callers do about a change.
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
    """The current catalogue; safe to share between threads.

    A file that becomes invalid or unreadable changes nothing: the last valid catalogue stays in
    use, and one warning is logged. The same holds for a file that was removed, since an editor may
    be about to replace it.
    """

    def __init__(self, settings: Settings, serve: tuple[str, ...] = ()) -> None:
        """Read the file; if it is invalid, use the last valid catalogue.

        Args:
            settings: they name the file.
            serve: names of the models to serve, all if empty; a file without one of them is
                invalid.

        Raises:
            SettingsError: the file is invalid, and no valid one was read since ``up`` started.
        """
        self._settings = settings
        self._serve = serve
        self._memory = _Memory(settings, serve)
        self._problem: str | None = None
        self._looking = threading.Lock()
        remembered = self._memory.recall()
        self._path = models_file(settings)
        if remembered and self._path == DEFAULT_PATH and remembered[0] == settings.home / OWN_FILE:
            self._path = remembered[0]  # it was removed; a running process keeps it too
        self._seen = (
            self._path,
            _identity(self._path),
        )  # before the file is read
        try:
            self._catalog = self._read(self._path)
        except SettingsError as error:
            if remembered is None or remembered[0] != self._path:
                raise
            self._catalog = remembered[1]
            self._refuse(error, "the models that were last read from it are served")

    @property
    def current(self) -> Catalog:
        """The current catalogue; a new object for each state of the file."""
        self._look_unless_busy()
        return self._catalog

    @property
    def problem(self) -> str | None:
        """Why the current file is invalid; ``None`` if it is valid."""
        self._look_unless_busy()
        return self._problem

    def _look_unless_busy(self) -> None:
        if self._looking.acquire(blocking=False):  # another thread is reading; do not wait
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
    """The last valid catalogue of one models file, on disk."""

    def __init__(self, settings: Settings, serve: tuple[str, ...]) -> None:
        asked = repr((str(settings.models_path), serve)).encode()
        name = hashlib.sha256(asked).hexdigest()[:16]
        self._file = settings.home / KNOWN_FOLDER / f"{name}.json"

    def recall(self) -> tuple[Path, Catalog] | None:
        """The file and its catalogue; ``None`` if none is stored."""
        try:
            document = json.loads(self._file.read_text(encoding="utf-8"))
            models = tuple(ModelSpec(**entry) for entry in document["models"])
            return (Path(document["path"]), Catalog(models)) if models else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self, path: Path, catalog: Catalog) -> None:
        """Store a catalogue, if the state folder is writable; safe in several processes at once."""
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
    """Delete the stored catalogues: a start by hand uses the models file only."""
    with contextlib.suppress(OSError):
        for file in (settings.home / KNOWN_FOLDER).iterdir():
            file.unlink()


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Changes when a file is overwritten or replaced."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
