"""A model's tensors by name, read from its safetensors files when they are asked for.

The files are read, never mapped: a tensor that was read is this process's own memory, so weights
that are overwritten later change no text, and a file that becomes shorter is an error instead of a
signal that ends the process. Knows nothing of families and of what a tensor is for.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from textmill.engine.models.errors import ModelUnusable

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_READ_BYTES = 1 << 26
# The number formats of https://github.com/huggingface/safetensors that PyTorch has.
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What a file's table of contents says of a tensor.

    Attributes:
        start: of its first byte in the file.
        num_bytes: that it takes there; as many as its shape and dtype need.
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class Checkpoint(Mapping[str, Tensor]):
    """Nothing is kept of a tensor that was read: who packs it away frees its memory.

    Attributes:
        entries: what the tables of contents say, by name.

    Raises:
        OSError: a file is missing or cannot be read.
        ModelUnusable: a file is broken; at the reading too, where it was cut off meanwhile.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Read the files' tables of contents."""
        self.entries: dict[str, TensorEntry] = {}
        for path in files:
            self.entries |= _contents(path)

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor into memory of its own."""
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        if entry.num_bytes:
            _fill(memoryview(cast("Any", tensor.view(-1).view(torch.uint8).numpy())), entry)
        return tensor

    def __iter__(self) -> Iterator[str]:
        """All names."""
        return iter(self.entries)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.entries)


def _fill(memory: memoryview, entry: TensorEntry) -> None:
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.start)
        done = 0
        while done < len(memory):
            num_read = file.readinto(memory[done : done + _READ_BYTES])
            if not num_read:
                raise _broken(entry.file, "it ends before its tensors do")
            done += num_read


def _contents(path: Path) -> dict[str, TensorEntry]:
    """A file's table of contents, with every number checked against the file's size."""
    with path.open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else None
        if length is None or length > min(MAX_HEADER_BYTES, num_bytes - 8):
            raise _broken(path, "it has no table of contents")
        text = file.read(length)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(path, "its table of contents is no JSON") from error
    if not isinstance(document, dict):
        raise _broken(path, "its table of contents is no JSON object")
    found = {}
    for name, said in document.items():
        if name != "__metadata__":
            found[name] = _entry(path, name, said, 8 + length, num_bytes)
    return found


def _entry(path: Path, name: str, said: Any, data: int, num_bytes: int) -> TensorEntry:
    """One line of the table; ``data`` is where the tensors begin."""
    try:
        kind, shape, (start, end) = said["dtype"], said["shape"], said["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _broken(path, f"its table of contents is wrong at {name!r}") from error
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise _broken(path, f"its table of contents is wrong at {name!r}")
    dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise _broken(path, f"{name} has numbers of the kind {kind!r}, which is not known here")
    if end < start or end - start != math.prod(shape) * dtype.itemsize:
        raise _broken(path, f"{name} has {end - start} bytes, which do not fit its shape {shape}")
    if data + end > num_bytes:
        raise _broken(path, "it ends before its tensors do")
    return TensorEntry(path, dtype, tuple(shape), data + start, end - start)


def _broken(path: Path, problem: str) -> ModelUnusable:
    return ModelUnusable(f"The weights in {path} are not complete: {problem}; copy the file again.")
