"""The models file as it stands now, for processes that run while models come and go.

Looks at the file whenever it is asked, which costs some microseconds, and reads it again when it
has changed: who registered a model may ask for it in the next moment. Knows nothing of what its
readers do about a change.
"""

from __future__ import annotations

import threading
from pathlib import Path

import structlog

from core.errors import SettingsError
from core.model_catalog import DEFAULT_PATH, Catalog, models_file, read_catalog
from core.settings import Settings

log = structlog.get_logger(__name__)


class LiveCatalog:
    """The present catalogue, for any thread.

    A file that has become wrong, or cannot be read, changes nothing: the last good catalogue stays,
    and the log has one warning. So does a file that was taken away: an editor may be about to put
    it back.
    """

    def __init__(self, settings: Settings, serve: tuple[str, ...] = ()) -> None:
        """Read the file for the first time.

        Args:
            settings: they tell which file.
            serve: names of the models that count, all where it is empty; a file without one of
                them is wrong.

        Raises:
            SettingsError: the file cannot be used.
        """
        self._settings = settings
        self._serve = serve
        self._path = models_file(settings)
        self._seen = (self._path, _identity(self._path))  # before the reading, or it may be missed
        self._catalog = read_catalog(self._path).served(serve)
        self._looking = threading.Lock()

    @property
    def current(self) -> Catalog:
        """The catalogue as it stands; an object of its own for each state of the file."""
        if self._looking.acquire(blocking=False):  # nobody waits for the one that reads
            try:
                self._look()
            finally:
                self._looking.release()
        return self._catalog

    def _look(self) -> None:
        path = models_file(self._settings) if self._path == DEFAULT_PATH else self._path
        seen = (path, _identity(path))
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._catalog = read_catalog(path).served(self._serve)
        except SettingsError as error:
            log.warning(
                "models_file_unusable", reason=str(error), consequence="the models stay as they are"
            )
            return
        self._path = path
        log.info("models_file_read", path=str(path), models=list(self._catalog.names))


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file's content, whether it is written over or put in its place."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
