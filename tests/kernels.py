"""The compiled kernels, built once for all tests and runs."""

from __future__ import annotations

import functools
import getpass
import tempfile
from ctypes import CDLL
from pathlib import Path

from textmill.engine.kernels.build import kernels

KERNEL_DIR = Path(tempfile.gettempdir()) / f"textmill-test-kernels-{getpass.getuser()}"


@functools.cache
def library() -> CDLL:
    return kernels(KERNEL_DIR)
