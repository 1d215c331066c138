"""Environment variables that PyTorch's libraries read when they are loaded.

The entry points of programs that compute with PyTorch set them before they import it. Values that
the user has set are kept.
"""

from __future__ import annotations

import os


def make_products_reproducible() -> None:
    """Have MKL sum products in an order that does not depend on the number of rows (Intel only)."""
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def prepare_for_serving() -> None:
    """The same, and idle threads of PyTorch sleep: the compiled kernels' threads need the cores."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    make_products_reproducible()
