"""Errors of finding, preparing, loading and computing a model.

ModelLoadError
├── SourceNotFound     the source does not exist
└── ModelUnusable      the source exists, but cannot be served
KernelRefusal          the compiled kernels did not compute a step
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textmill.core.errors import TextmillError

_MAX_CHARACTERS = 300  # of a library's message; some are a page long


class ModelLoadError(TextmillError):
    """A model of the models file cannot be served; the message says how to solve it."""

    code = "model_load"


class SourceNotFound(ModelLoadError):
    """The folder, file, package or repository does not exist."""

    code = "model_not_found"


class ModelUnusable(ModelLoadError):
    """The files exist, but are not a causal language model that can be loaded."""

    code = "model_unusable"


class KernelRefusal(TextmillError):
    """The compiled kernels refused a step, or failed in it; other memory was not touched."""

    code = "kernel_refusal"


def in_one_line(error: Exception) -> str:
    """A library's error message, shortened to be part of a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"


def check_complete(report: Mapping[str, Any], place: Path) -> None:
    """Check that transformers found every tensor; it initializes missing ones at random.

    Args:
        report: the loading info of ``from_pretrained(…, output_loading_info=True)``.
        place: the file or folder, for the message.

    Raises:
        ModelUnusable: a tensor is missing.
    """
    missing = sorted(map(str, report.get("missing_keys") or ()))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelUnusable(
            f"The weights in {place} are incomplete: {missing[0]}{more} is missing."
            " Copy them again."
        )
