"""Writes a safetensors file tensor by tensor, so that only one of them is in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def write_float32(
    path: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Float32]
) -> None:
    """Write tensors in float32, the same bytes as the library's ``save_file``.

    Args:
        path: the new file.
        shapes: the tensors' shapes by name.
        read: returns a tensor of such a shape.
    """
    names = sorted(shapes)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + 4 * math.prod(shapes[name])
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            np.ascontiguousarray(read(name), "<f4").tofile(file)
