"""Reads the metadata and the tensors of a .gguf file, an untrusted one included.

The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3,
little-endian. Files are read, never mapped. Knows nothing of tokenizers or families.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from textmill.engine.models.errors import ModelUnusable

_ALIGNMENT = 32
_MAX_ITEMS = 1 << 24  # of an array or a table; more is a mistake
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor in the table of contents.

    Attributes:
        kind: the number of its GGML type.
        shape: as in PyTorch, the outermost size first.
        start: the offset of its first byte in the file.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    start: int


class GgufFile:
    """A file's metadata and its table of contents.

    Attributes:
        path: the file.
        fields: the metadata: numbers, strings and lists by key.
        tensors: by name.
    """

    def __init__(self, path: Path) -> None:
        """Read everything but the tensors.

        Raises:
            ModelUnusable: the file cannot be read.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self._read(_Cursor(file))
        except (OSError, struct.error, ValueError, MemoryError, OverflowError) as error:
            raise _broken(path, str(error) or type(error).__name__) from error

    def _read(self, cursor: _Cursor) -> None:
        if cursor.take(4) != b"GGUF":
            raise ValueError("it does not begin as one")
        version = cursor.number("<I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}; 2 and 3 are supported")
        num_tensors, num_fields = cursor.count(), cursor.count()
        self.fields: dict[str, Any] = {}
        for _ in range(num_fields):
            name = cursor.string()
            self.fields[name] = cursor.value(cursor.number("<I"))
        found = [cursor.tensor() for _ in range(num_tensors)]
        alignment = self.fields.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20:
            raise ValueError(f"its alignment is {alignment!r}")
        base = -(-cursor.position // alignment) * alignment
        self.tensors = {
            name: GgufTensor(name, kind, shape, base + offset)
            for name, kind, shape, offset in found
        }

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read a tensor, and convert it to float32.

        Raises:
            ModelUnusable: the file ends before the tensor does, or its type cannot be read.
        """
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415 - rarely needed
        from gguf.quants import dequantize  # noqa: PLC0415

        entry = self.tensors[name]
        try:
            kind = GGMLQuantizationType(entry.kind)
            num_values, num_bytes = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise self._unreadable(name, f"number {entry.kind}") from error
        if entry.shape[-1] % num_values:
            raise _broken(self.path, f"{name} has rows of {entry.shape[-1]} numbers")
        size = math.prod(entry.shape) // num_values * num_bytes
        with self.path.open("rb") as file:
            if entry.start + size > os.fstat(file.fileno()).st_size:
                raise _broken(self.path, f"it ends before {name} does")
            file.seek(entry.start)
            content = np.fromfile(file, np.uint8, size)
        if content.size < size:  # it became shorter meanwhile
            raise _broken(self.path, f"it ends before {name} does")
        rows = content.reshape(*entry.shape[:-1], -1)
        try:
            numbers = dequantize(rows, kind)
        except NotImplementedError as error:
            raise self._unreadable(name, kind.name) from error
        return np.ascontiguousarray(numbers.reshape(entry.shape), np.float32)

    def _unreadable(self, name: str, kind: str) -> ModelUnusable:
        return ModelUnusable(
            f"{self.path}: the tensor {name} has the type {kind}, which cannot be read. Quantize"
            " the model to another type, Q8_0 for example."
        )


class _Cursor:
    """Reads one value after the other; a size beyond the file's end is an error."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.position = 0

    def take(self, num_bytes: int) -> bytes:
        if num_bytes > self._size - self.position:
            raise ValueError("it ends before its table of contents does")
        self.position += num_bytes
        return self._file.read(num_bytes)

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def count(self) -> int:
        found = int(self.number("<Q"))
        if found > _MAX_ITEMS:
            raise ValueError("a number in its table of contents is too large")
        return found

    def string(self) -> str:
        return self.take(int(self.number("<Q"))).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"a value has the unknown type {kind}")
        inner, length = self.number("<I"), self.count()
        if inner in _SCALARS:
            code = f"<{length}{_SCALARS[inner][1]}"
            return list(struct.unpack(code, self.take(struct.calcsize(code))))
        if inner != _STRING:
            raise ValueError(f"an array has the unsupported type {inner}")
        return [self.string() for _ in range(length)]

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self.string()
        num_dimensions = self.number("<I")
        if not 1 <= num_dimensions <= 4:
            raise ValueError(f"{name} has {num_dimensions} dimensions")
        shape = tuple(self.count() for _ in range(num_dimensions))[::-1]
        return name, int(self.number("<I")), shape, int(self.number("<Q"))


def _broken(path: Path, problem: str) -> ModelUnusable:
    return ModelUnusable(f"{path} is not a .gguf file that can be read: {problem}. Copy it again.")
