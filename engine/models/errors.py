"""Errors of finding, preparing and loading a model, and of computing with it.

ModelLoadError
├── SourceNotFound     nothing is there under that source
└── ModelUnusable      something is there, but it cannot be served
KernelRefusal          the compiled kernels did not compute a step
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textmill.core.errors import TextmillError

_MAX_CHARACTERS = 300  # of a library's own words; some explain themselves over a page


class ModelLoadError(TextmillError):
    """A model of the models file cannot be served; the message says what to do."""

    code = "model_load"


class SourceNotFound(ModelLoadError):
    """There is no such folder, file, package or repository."""

    code = "model_not_found"


class ModelUnusable(ModelLoadError):
    """The files are there but are not a causal language model that we can load."""

    code = "model_unusable"


class KernelRefusal(TextmillError):
    """The compiled kernels refused a step, or failed in it; nothing outside of it was touched."""

    code = "kernel_refusal"


def in_one_line(error: Exception) -> str:
    """What a library says of an error, short enough for a sentence of ours."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= _MAX_CHARACTERS else f"{words[:_MAX_CHARACTERS]}…"


def check_complete(report: Mapping[str, Any], place: Path) -> None:
    """See that transformers found every tensor; it fills those that are missing at random.

    Args:
        report: what ``from_pretrained(…, output_loading_info=True)`` tells.
        place: the file or folder, for the message.

    Raises:
        ModelUnusable: some are missing.
    """
    missing = sorted(map(str, report.get("missing_keys") or ()))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelUnusable(
            f"The weights in {place} are not complete: {missing[0]}{more} is missing;"
            " copy them again."
        )
