"""The hardware that training runs on: its name, peak memory and preferred precision."""

from __future__ import annotations

import os
import platform
import resource
import sys

import torch


def device_name() -> str:
    """``cpu``, or the GPU's model."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def describe_hardware(device: str) -> str:
    """The kind and number of processors, without the machine's name.

    Args:
        device: from ``device_name``.
    """
    if device != "cpu":
        return f"{torch.cuda.device_count()} x {device}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU cores ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def peak_bytes() -> int:
    """The peak memory so far: of the GPU if there is one, otherwise of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resolve_precision(requested: str) -> str:
    """The precision of matrix products.

    Args:
        requested: ``training.precision``; ``auto`` selects ``bfloat16`` if the device has fast
            instructions for it, otherwise ``float32``.
    """
    if requested != "auto":
        return requested
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if is_fast else "float32"
