"""The compiled kernels, built once for all tests and runs.

``TEXTMILL_TEST_KERNELS_ISA`` names another instruction set than the processor's best one.
"""

from __future__ import annotations

import functools
import getpass
import os
import tempfile
from ctypes import CDLL
from pathlib import Path

from textmill.engine.kernels.build import kernels
from textmill.engine.kernels.instruction_sets import AUTO

KERNEL_DIR = Path(tempfile.gettempdir()) / f"textmill-test-kernels-{getpass.getuser()}"


@functools.cache
def library() -> CDLL:
    return kernels(KERNEL_DIR, os.environ.get("TEXTMILL_TEST_KERNELS_ISA", AUTO)).library
