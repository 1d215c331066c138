"""The device and the precision with which this machine computes a model."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from textmill.engine.kernels.build import Kernels, NoKernels, kernels
from textmill.engine.kernels.instruction_sets import AUTO

# Files of the drivers of NVIDIA's and AMD's GPUs, and of NVIDIA's in Windows' Linux. PyTorch, which
# takes 200 MB and a second to load, can use no GPU without one.
_GPU_FILES = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Placement:
    """A device and a precision.

    Attributes:
        dtype: ``float32``, ``bfloat16`` or ``int8``: the type in which weights are stored and
            multiplied.
        device: PyTorch's name of the device.
        kernels: the compiled kernels, or ``None`` if PyTorch computes alone.
        reason: why PyTorch computes alone.
    """

    dtype: str
    device: str
    kernels: Kernels | None
    reason: str = ""

    @property
    def library(self) -> ctypes.CDLL | None:
        """The functions of the kernels."""
        return None if self.kernels is None else self.kernels.library


def has_gpu() -> bool:
    """Whether PyTorch can compute on a GPU; it is only loaded if this machine may have one."""
    if not any(path.exists() for path in _GPU_FILES):
        return False
    import torch  # noqa: PLC0415 - without a GPU, the kernels need no torch

    return torch.cuda.is_available()


def place(
    dtype: str, kernel_dir: Path | None, report: Report, instruction_set: str = AUTO
) -> Placement:
    """Choose for a natively supported family.

    ``auto`` is bfloat16 on a GPU, int8 on a CPU with the compiled kernels, and float32 without
    them.

    Args:
        dtype: ``float32``, ``bfloat16``, ``int8`` or ``auto``.
        kernel_dir: the folder of compiled kernels; ``None`` for PyTorch alone.
        report: is called with a sentence before the kernels are compiled, and if the dtype is not
            the one that was requested.
        instruction_set: of the kernels; ``auto``, or the name of a set.

    Raises:
        SettingsError: the processor does not have the instruction set.
    """
    if has_gpu():
        if dtype == "int8":
            report("int8 is for CPUs; bfloat16 is used on this GPU")
        chosen = "float32" if dtype == "float32" else "bfloat16"
        return Placement(chosen, "cuda", None, "PyTorch computes on the GPU")
    if dtype == "bfloat16":
        return Placement("bfloat16", "cpu", None, "the kernels have no bfloat16")
    if kernel_dir is None:
        if dtype == "int8":
            report("int8 needs the compiled kernels, which are switched off; float32 is used")
        return Placement("float32", "cpu", None, "they are switched off by TEXTMILL_KERNELS")
    try:
        found = kernels(kernel_dir, instruction_set, report)
    except NoKernels as error:
        if dtype == "int8":
            report(f"int8 needs the compiled kernels ({error}); float32 is used")
        return Placement("float32", "cpu", None, str(error))
    return Placement("float32" if dtype == "float32" else "int8", "cpu", found)
