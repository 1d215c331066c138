"""The key-value cache as tensors, for the decoder in PyTorch, on any device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from textmill.engine.models.cache import SlotCache

_HOST = torch.device("cpu")


class TensorCache(SlotCache):
    """Like ``SlotCache``, with tensors. A GPU allocates all memory at once."""

    keys: Tensor
    values: Tensor

    def __init__(self, *, dtype: torch.dtype, device: torch.device = _HOST, **sizes: int) -> None:
        """Reserve addresses; ``dtype`` is float32 or bfloat16, ``sizes`` as for ``SlotCache``."""
        self._dtype = dtype
        self._device = device
        super().__init__(number_bytes=dtype.itemsize, **sizes)

    def _copy(self, numbers: Any) -> Tensor:
        copied: Tensor = numbers.clone()
        return copied

    def _reserve(self, shape: tuple[int, ...]) -> Tensor:
        num_bytes = math.prod(shape) * self._dtype.itemsize
        is_host = self._device.type == "cpu"
        region = self._reserved(num_bytes, shape[1]) if is_host else None
        if region is None:
            return torch.zeros(shape, dtype=self._dtype, device=self._device)
        return torch.frombuffer(region, dtype=self._dtype).view(shape)
