"""The device and the precision with which this machine computes a model."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from textmill.engine.kernels.build import NoKernels, kernels

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Placement:
    """A device and a precision.

    Attributes:
        dtype: ``float32``, ``bfloat16`` or ``int8``: the type in which weights are stored and
            multiplied.
        device: PyTorch's name of the device.
        library: the compiled kernels, or ``None`` if PyTorch computes alone.
    """

    dtype: str
    device: str
    library: ctypes.CDLL | None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type in which PyTorch reads the weights."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


def place(dtype: str, kernel_dir: Path | None, report: Report) -> Placement:
    """Choose for a natively supported family.

    ``auto`` is bfloat16 on a GPU, int8 on a CPU with the compiled kernels, and float32 without
    them.

    Args:
        dtype: ``float32``, ``bfloat16``, ``int8`` or ``auto``.
        kernel_dir: the folder of compiled kernels; ``None`` for PyTorch alone.
        report: is called with a sentence if the result is not what was requested.
    """
    if torch.cuda.is_available():
        if dtype == "int8":
            report("int8 is for CPUs; bfloat16 is used on this GPU")
        return Placement("float32" if dtype == "float32" else "bfloat16", "cuda", None)
    if dtype == "bfloat16":
        return Placement("bfloat16", "cpu", None)
    if kernel_dir is None:
        if dtype == "int8":
            report("int8 needs the compiled kernels, which are switched off; float32 is used")
        return Placement("float32", "cpu", None)
    try:
        library = kernels(kernel_dir)
    except NoKernels as error:
        wanted = "; int8 needs them, float32 is used" if dtype == "int8" else ""
        report(f"no compiled kernels ({error}), PyTorch computes alone and slower{wanted}")
        return Placement("float32", "cpu", None)
    return Placement("float32" if dtype == "float32" else "int8", "cpu", library)
