"""Runs code in an interpreter in which torch and transformers cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
_BEGINNING = """
import sys, types
for name in ("torch", "transformers"):
    sys.modules[name] = None  # an import of it raises
package = types.ModuleType("textmill.engine")
package.__path__ = ["engine"]  # without running its __init__
sys.modules["textmill.engine"] = package
"""


def run_without_torch(program: str) -> None:
    """Run a program that may import modules of ``textmill.engine``; fails if it fails."""
    done = subprocess.run(
        [sys.executable, "-c", _BEGINNING + program],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
