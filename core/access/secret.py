"""The secret that signs visitors' tokens: a setting, or a file that is created once."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from textmill.core.errors import SettingsError
from textmill.core.settings import Settings

FILE_NAME = "secret"
_NUM_BYTES = 32


def signing_secret(settings: Settings) -> str:
    """The secret of an installation; all its web processes need the same.

    Raises:
        SettingsError: the file can be neither read nor created.
    """
    if settings.secret is not None:
        return settings.secret
    path = settings.home / FILE_NAME
    try:
        return _read(path) or _create(path)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be used ({error.strerror}): make its folder writable, or set"
            " TEXTMILL_SECRET to at least 32 random characters."
        ) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def _create(path: Path) -> str:
    """Create the file, unless another process does: the first one is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    new.touch(mode=0o600)
    try:
        new.write_text(secrets.token_hex(_NUM_BYTES) + "\n", encoding="ascii")
        try:
            os.link(new, path)
        except FileExistsError:
            if not _read(path):  # empty or damaged; a running process may have it in memory
                new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return _read(path)
