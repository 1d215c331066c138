"""A model's tensors by name, read from its safetensors files on access.

The files are read, never mapped: a tensor is then this process's own memory. A file that is
overwritten later does not change the weights, and one that becomes shorter is an error, not a
signal that ends the process. Knows nothing of families or of a tensor's purpose.
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
# The number formats of https://github.com/huggingface/safetensors that PyTorch supports.
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a file's table of contents.

    Attributes:
        start: the offset of its first byte in the file.
        num_bytes: its size, which matches its shape and dtype.
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class Checkpoint(Mapping[str, Tensor]):
    """A lazy mapping from names to tensors. It keeps no reference to tensors that were read.

    Attributes:
        entries: the tables of contents, by name.

    Raises:
        OSError: a file is missing or cannot be read.
        ModelUnusable: a file is broken. Reading a tensor raises it if the file was truncated
            meanwhile.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Read the files' tables of contents."""
        self.entries: dict[str, TensorEntry] = {}
        for path in files:
            self.entries |= _contents(path)

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor into new memory."""
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        if entry.num_bytes:
            _fill(memoryview(cast("Any", tensor.view(-1).view(torch.uint8).numpy())), entry)
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.entries)

    def __len__(self) -> int:
        """The number of tensors."""
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
    """Read a file's table of contents, and check its numbers against the file's size."""
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
        raise _broken(path, "its table of contents is not JSON") from error
    if not isinstance(document, dict):
        raise _broken(path, "its table of contents is not a JSON object")
    found = {}
    for name, fields in document.items():
        if name != "__metadata__":
            found[name] = _entry(path, name, fields, 8 + length, num_bytes)
    return found


def _entry(path: Path, name: str, fields: Any, data: int, num_bytes: int) -> TensorEntry:
    """Parse an entry of the table; ``data`` is the offset of the tensors in the file."""
    try:
        kind, shape, (start, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _broken(path, f"its table of contents is wrong at {name!r}") from error
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise _broken(path, f"its table of contents is wrong at {name!r}")
    dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise _broken(path, f"{name} has numbers of the unknown type {kind!r}")
    if end < start or end - start != math.prod(shape) * dtype.itemsize:
        raise _broken(path, f"{name} has {end - start} bytes, which do not match its shape {shape}")
    if data + end > num_bytes:
        raise _broken(path, "it ends before its tensors do")
    return TensorEntry(path, dtype, tuple(shape), data + start, end - start)


def _broken(path: Path, problem: str) -> ModelUnusable:
    return ModelUnusable(f"The weights in {path} are incomplete: {problem}. Copy the file again.")
