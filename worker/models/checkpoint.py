"""A model's tensors by name, read from its safetensors files when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor


class Checkpoint(Mapping[str, Tensor]):
    """Nothing is kept of a tensor that was read: who packs it away frees its memory.

    Raises:
        OSError, SafetensorError: a file is missing or broken.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Open the files, and read their tables of contents."""
        self._places: dict[str, Any] = {}
        for path in files:
            opened: Any = safe_open(path, framework="pt")
            self._places |= dict.fromkeys(opened.keys(), opened)

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor."""
        tensor: Tensor = self._places[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        """All names."""
        return iter(self._places)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._places)
