"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

from textmill.core.errors import SettingsError


def expand_home(path: str | Path) -> Path:
    """Replace a leading ``~`` or ``~user`` by that user's home folder.

    Raises:
        SettingsError: the system does not know the user, or the user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = Path(path).parts[0]
        raise SettingsError(
            f"The home folder of {user!r} is unknown; write the path {str(path)!r} in full."
        ) from error
