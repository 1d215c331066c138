"""The state of a model's files, by which a change is detected without reading them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from textmill.core.catalog.models_file import FINETUNE_FILE, ModelSpec

_READ_SUFFIXES = {".safetensors", ".bin", ".json", ".txt", ".model", ".gguf", ".jinja"}


@dataclass(frozen=True, slots=True)
class ModelState:
    """The entry of a model and the state of its files.

    Attributes:
        files: name, size in bytes and time of change (ns) of each file that a loader reads.
    """

    source: str
    adapter: str | None
    dtype: str
    files: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, spec: ModelSpec) -> ModelState:
        """The present state of a model; missing files are left out."""
        places = [spec.source] if spec.adapter is None else [spec.source, spec.adapter]
        files = [stat for place in places if Path(place).is_absolute() for stat in _stats(place)]
        return cls(spec.source, spec.adapter, spec.dtype, tuple(files))


def _stats(place: str) -> list[tuple[str, int, int]]:
    """The files that a loader reads; the card and the curve beside them do not count."""
    path = Path(place)
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        chosen = [f for f in files if f.suffix in _READ_SUFFIXES and f.name != FINETUNE_FILE]
        found = [(file.name, file.stat()) for file in chosen]
    except OSError:  # the folder is missing, or is being removed
        return []
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]
