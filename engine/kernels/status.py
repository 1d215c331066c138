"""What the kernels answer, and errors made of it.

Knows nothing of weights or of steps.
"""

from __future__ import annotations

from enum import IntEnum

from textmill.engine.models.errors import KernelRefusal, ModelUnusable


class Status(IntEnum):
    """Mirrors Status in status.h."""

    OK = 0
    NO_MEMORY = -1
    NO_THREADS = -2
    NULL_POINTER = -3
    BAD_SPEC = -4
    BAD_LAYER = -5
    BAD_PART = -6
    BAD_SHAPE = -7
    BAD_WINDOW = -8
    BAD_COUNT = -9
    BAD_SLOT = -10
    BAD_POSITION = -11
    BAD_ORDER = -12
    BAD_ROW = -13
    BAD_DRAW = -14
    BAD_TOKEN = -15
    NOT_COMPLETE = -16
    UNEXPECTED = -17


_REASONS = {
    Status.NO_MEMORY: "there is not enough memory",
    Status.NO_THREADS: "the system refuses more threads",
    Status.NULL_POINTER: "a tensor is missing",
    Status.BAD_SPEC: "a size of the model is outside of what the kernels can compute",
    Status.BAD_LAYER: "there is no layer of that number",
    Status.BAD_PART: "a layer has no part of that number",
    Status.BAD_SHAPE: "a tensor does not have the shape that the model's config gives it",
    Status.BAD_WINDOW: "an attention window is negative",
    Status.BAD_COUNT: "a step has too many rows",
    Status.BAD_SLOT: "a row names a slot that the cache does not have",
    Status.BAD_POSITION: "a row is at a position outside of the model's context",
    Status.BAD_ORDER: "rows of one slot are not in the order of their positions",
    Status.BAD_ROW: "logits are wanted of a row that the step does not have",
    Status.BAD_DRAW: "a decoding parameter is outside of its range",
    Status.BAD_TOKEN: "a token id is outside of the model's vocabulary",
    Status.NOT_COMPLETE: "the decoder was not given all of its weights",
    Status.UNEXPECTED: "an unexpected error occurred",
}


def reason_of(code: int) -> str:
    """The answer in words."""
    try:
        return _REASONS[Status(code)]
    except (KeyError, ValueError):
        return f"they answered {code}"


def check_load(code: int) -> None:
    """Raise where a decoder could not be made of its weights.

    Raises:
        ModelUnusable: the answer was not ``OK``.
    """
    if code == Status.OK:
        return
    if code == Status.NO_MEMORY:
        raise ModelUnusable("There is not enough memory for the model's weights; free some.")
    if code == Status.NO_THREADS:
        raise ModelUnusable(
            "The system refuses the threads that a step is computed with; raise its limit on"
            " processes, or lower OMP_NUM_THREADS."
        )
    raise ModelUnusable(
        f"The compiled kernels cannot load the model: {reason_of(code)}. Check its"
        " config.json, and copy the folder again."
    )


def check_step(code: int) -> None:
    """Raise where a step was refused or failed.

    Raises:
        KernelRefusal: the answer was not ``OK``.
    """
    if code != Status.OK:
        raise KernelRefusal(
            f"The compiled kernels did not compute the step: {reason_of(code)}. Try again; if it"
            " happens again, set TEXTMILL_KERNELS=off and report it."
        )
