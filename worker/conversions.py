"""Removes converted models that no entry of the models file needs any more."""

from __future__ import annotations

import structlog

from textmill.core.catalog.models_file import load_catalog
from textmill.core.errors import SettingsError
from textmill.core.settings import Settings
from textmill.engine.models.converted_folders import Marker, remove_unneeded
from textmill.engine.models.sources import is_of

# A changed adapter leaves a folder, which may be removed an hour after its last use.
REMOVE_SECONDS = 600.0
_BYTES_PER_MIB = 1 << 20
log = structlog.get_logger(__name__)


def remove_stale(settings: Settings) -> None:
    """Remove the folders that neither an entry nor a process needs, and log each of them.

    Nothing is removed while the models file is invalid. All its entries count, including those that
    this worker does not serve.
    """
    cache_dir = settings.home / "models"
    try:
        models = tuple(load_catalog(settings))
    except SettingsError:
        return

    def is_needed(name: str, marker: Marker) -> bool:
        return any(is_of(m.source, m.adapter, name, marker, cache_dir) for m in models)

    for removed in remove_unneeded(cache_dir, is_needed):
        mib = round(removed.num_bytes / _BYTES_PER_MIB)
        log.info("conversion_removed", folder=removed.name, mib=mib)
