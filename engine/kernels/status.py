"""The status codes that the kernels return, and the errors for them."""

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
    BAD_WANTED = -13
    BAD_SAMPLING = -14
    BAD_TOKEN = -15
    NOT_COMPLETE = -16
    UNEXPECTED = -17


_REASONS = {
    Status.NO_MEMORY: "there is not enough memory",
    Status.NO_THREADS: "the system refuses more threads",
    Status.NULL_POINTER: "a tensor is missing",
    Status.BAD_SPEC: "a size of the model is outside of the kernels' limits",
    Status.BAD_LAYER: "there is no layer with that number",
    Status.BAD_PART: "a layer has no part with that number",
    Status.BAD_SHAPE: "a tensor does not have the shape that the model's config implies",
    Status.BAD_WINDOW: "an attention window is negative",
    Status.BAD_COUNT: "a step has too many tokens or rows",
    Status.BAD_SLOT: "the cache does not have a slot of the step",
    Status.BAD_POSITION: "a position is outside of the model's context",
    Status.BAD_ORDER: "the tokens of a slot are not in the order of their positions",
    Status.BAD_WANTED: "logits are wanted for a token that the step does not contain",
    Status.BAD_SAMPLING: "a decoding parameter is outside of its range",
    Status.BAD_TOKEN: "a token id is outside of the model's vocabulary",
    Status.NOT_COMPLETE: "some weights of the decoder were not given",
    Status.UNEXPECTED: "an unexpected error occurred",
}


def reason_of(code: int) -> str:
    """A description of a status code."""
    try:
        return _REASONS[Status(code)]
    except (KeyError, ValueError):
        return f"they returned {code}"


def check_load(code: int) -> None:
    """Check the status of a call that loads a model.

    Raises:
        ModelUnusable: the status is not ``OK``.
    """
    if code == Status.OK:
        return
    if code == Status.NO_MEMORY:
        raise ModelUnusable("Out of memory while loading the model's weights. Free some memory.")
    if code == Status.NO_THREADS:
        raise ModelUnusable(
            "The system refuses to start the threads that compute a step. Raise its limit on"
            " processes, or lower OMP_NUM_THREADS."
        )
    raise ModelUnusable(
        f"The compiled kernels cannot load the model: {reason_of(code)}. Check its"
        " config.json, and copy the folder again."
    )


def check_step(code: int) -> None:
    """Check the status of a call during a step.

    Raises:
        KernelRefusal: the status is not ``OK``.
    """
    if code != Status.OK:
        raise KernelRefusal(
            f"The compiled kernels did not compute the step: {reason_of(code)}. Try again. If it"
            " happens again, set TEXTMILL_KERNELS=off and report it."
        )
