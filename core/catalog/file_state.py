"""What a model is made of, as far as it can be told from its files' names, sizes and instants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from textmill.core.catalog.models_file import FINETUNE_FILE, ModelSpec

_READ_SUFFIXES = {".safetensors", ".bin", ".json", ".txt", ".model", ".gguf", ".jinja"}


@dataclass(frozen=True, slots=True)
class ModelState:
    """What a model is made of, as far as it can be told without loading it.

    Attributes:
        files: name, bytes and instant of change of what its folders contain.
    """

    source: str
    adapter: str | None
    dtype: str
    files: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, spec: ModelSpec) -> ModelState:
        """Look at a model's files; a missing one is as good as any."""
        places = [spec.source] if spec.adapter is None else [spec.source, spec.adapter]
        files = [stat for place in places if Path(place).is_absolute() for stat in _stats(place)]
        return cls(spec.source, spec.adapter, spec.dtype, tuple(files))


def _stats(place: str) -> list[tuple[str, int, int]]:
    """What a loader would read; a card or a curve beside it may change at will."""
    path = Path(place)
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        chosen = [f for f in files if f.suffix in _READ_SUFFIXES and f.name != FINETUNE_FILE]
        found = [(file.name, file.stat()) for file in chosen]
    except OSError:  # gone, or going at this moment
        return []
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]
