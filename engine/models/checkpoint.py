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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from textmill.engine.models.errors import ModelUnusable

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_READ_BYTES = 1 << 26
_BFLOAT16 = "bfloat16"
# The number formats of https://github.com/huggingface/safetensors: name, and bytes of a number.
_FORMATS = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": (_BFLOAT16, 2),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1),
    "U8": ("uint8", 1), "BOOL": ("bool", 1),
}  # fmt: skip
FLOATS = ("float32", "float16", _BFLOAT16, "float64")  # that can be read


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a file's table of contents.

    Attributes:
        dtype: the name of its number type.
        start: the offset of its first byte in the file.
        num_bytes: its size, which matches its shape and dtype.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class Checkpoint(Mapping[str, NDArray[Any]]):
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

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read a tensor of one of ``FLOATS`` into new memory; bfloat16 becomes float32, exactly."""
        return _read(self.entries[name])

    def stacked(self, names: Sequence[str]) -> NDArray[np.float32]:
        """Read matrices of one width below each other, in float32, without a copy of each."""
        entries = [self.entries[name] for name in names]
        heights = [entry.shape[0] for entry in entries]
        stack = np.empty((sum(heights), *entries[0].shape[1:]), np.float32)
        parts = np.split(stack, np.cumsum(heights)[:-1])
        for part, entry in zip(parts, entries, strict=True):
            if entry.dtype == "float32" and entry.num_bytes:
                _fill(memoryview(cast("Any", part.reshape(-1).view(np.uint8))), entry)
            else:
                part[...] = _read(entry)
        return stack

    def rows(self, name: str) -> StoredRows:
        """A tensor whose rows are read later, so that it is never in memory as a whole."""
        return StoredRows(self.entries[name])

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.entries)

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self.entries)


class StoredRows:
    """A tensor in a file, of which any rows can be read into new memory.

    Raises:
        OSError, ModelUnusable: as for ``Checkpoint``, when rows are read.
    """

    def __init__(self, entry: TensorEntry) -> None:
        self._entry = entry

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self._entry.shape

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Read adjacent rows."""
        entry = self._entry
        num_rows = max(1, entry.shape[0])
        start, stop, step = rows.indices(entry.shape[0])
        if step != 1:
            raise ValueError(f"Rows are read one after the other, not in steps of {step}.")
        row_bytes = entry.num_bytes // num_rows
        count = max(0, stop - start)
        return _read(
            replace(
                entry,
                shape=(count, *entry.shape[1:]),
                start=entry.start + start * row_bytes,
                num_bytes=count * row_bytes,
            )
        )

    def __array__(
        self, dtype: DTypeLike | None = None, *, copy: bool | None = None
    ) -> NDArray[Any]:
        """Read all rows."""
        return np.asarray(_read(self._entry), dtype)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model; its folder may also contain those of adapters."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelUnusable(f"{index} cannot be read. Copy the folder again.") from error
        return [folder / name for name in sorted(names)]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else []


def is_plain(folder: Path) -> bool:
    """Whether a folder needs no conversion: it has safetensors and a tokenizer.json."""
    return (folder / "tokenizer.json").is_file() and bool(weight_files(folder))


def float32_of_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Numbers from their upper 16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _read(entry: TensorEntry) -> NDArray[Any]:
    is_bfloat16 = entry.dtype == _BFLOAT16
    array = np.empty(entry.shape, np.uint16 if is_bfloat16 else entry.dtype)
    if entry.num_bytes:
        _fill(memoryview(cast("Any", array.reshape(-1).view(np.uint8))), entry)
    return float32_of_bfloat16(array) if is_bfloat16 else array


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
    known = _FORMATS.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise _broken(path, f"{name} has numbers of the unknown type {kind!r}")
    dtype, num_bytes_each = known
    if end < start or end - start != math.prod(shape) * num_bytes_each:
        raise _broken(path, f"{name} has {end - start} bytes, which do not match its shape {shape}")
    if data + end > num_bytes:
        raise _broken(path, "it ends before its tensors do")
    return TensorEntry(path, dtype, tuple(shape), data + start, end - start)


def _broken(path: Path, problem: str) -> ModelUnusable:
    return ModelUnusable(f"The weights in {path} are incomplete: {problem}. Copy the file again.")
