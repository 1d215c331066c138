"""The grammar of a model's source.

A source is ``package:NAME`` (a .gguf file that an installed package contains), a path of a folder
or of a .gguf file, or the id of a model on the Hugging Face Hub. The models file, the command line
and fine-tuning configurations use it alike. Loads no model.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Literal

from textmill.core.paths import expand_home

_PACKAGE = "package:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A parsed source.

    Attributes:
        kind: how ``value`` is to be read.
        value: the package's name, the path, or the Hub id.
    """

    kind: Literal["package", "path", "hub"]
    value: str

    def __str__(self) -> str:
        return f"{_PACKAGE}{self.value}" if self.kind == "package" else self.value

    @property
    def is_hub_id(self) -> bool:
        """Whether this is a Hub source whose id has a valid form."""
        return self.kind == "hub" and _HUB_ID.fullmatch(self.value) is not None

    def package_spec(self) -> ModuleSpec | None:
        """Find the package without importing it; ``None`` if it is not installed."""
        module = self.value.replace("-", "_")
        return importlib.util.find_spec(module) if module.isidentifier() else None


def parse_source(text: str, folder: Path | None = None) -> ModelSource:
    """Parse a source.

    A path is text that begins with ``/``, ``.`` or ``~``, ends in ``.gguf``, or names an existing
    file or folder.

    Args:
        text: the source as written.
        folder: the folder that relative paths refer to, by default the current one.

    Returns:
        The source; a relative path is joined to ``folder``.

    Raises:
        SettingsError: the path begins with the home folder of an unknown user.
    """
    if text.startswith(_PACKAGE):
        return ModelSource("package", text.removeprefix(_PACKAGE))
    path = (folder or Path()) / expand_home(text)
    looks_like_path = text.startswith(("/", ".", "~")) or text.endswith(".gguf")
    if looks_like_path or path.exists():
        return ModelSource("path", str(path))
    return ModelSource("hub", text)
