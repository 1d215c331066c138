"""Errors of finding, preparing and loading a model, and of computing with it.

ModelLoadError
├── SourceNotFound     nothing is there under that source
└── ModelUnusable      something is there, but it cannot be served
KernelRefusal          the compiled kernels did not compute a step
"""

from __future__ import annotations

from core.errors import TextmillError

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
