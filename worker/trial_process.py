"""``python -m textmill.worker.trial_process PARENT``: loads one model and generates some tokens.

A model that crashes or fills the memory does so here, and the worker goes on. PARENT is the process
that waits for the result. Standard input contains a JSON object that says what to load. Each line
of standard output is a JSON object with ``report``, a sentence about a slow step, or ``error``, why
the model cannot be served. The exit status is 0 if the model works.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_NICENESS = 5  # the worker's own decoding comes first
NUM_TOKENS = 4
_TEXT = "The quick brown fox"


@dataclass(eq=False, slots=True)
class TrialRow:
    """A sequence in a slot."""

    slot: int
    ids: list[int]
    num_cached: int = 0


def main(parent: int) -> int:
    """Try the model that the standard input asks for."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries is not part of the answer
    _give_way(parent)
    asked = json.loads(sys.stdin.read())
    try:
        _try(asked, out)
    except Exception as error:  # the edge of this process: any error of a library is the answer
        _say(out, error=f"{_sentence(error)}")
        return 1
    return 0


def _give_way(parent: int) -> None:
    """Die with the parent, write no core file, and be killed first when memory is short."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the request was registered
        sys.exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)


def _try(asked: dict[str, Any], out: IO[str]) -> None:
    from textmill.core.catalog.models_file import ModelSpec  # noqa: PLC0415 - after the limits
    from textmill.engine.models.loading import MAX_BEAMS, load  # noqa: PLC0415
    from textmill.engine.models.placement import has_gpu  # noqa: PLC0415

    spec = ModelSpec(**asked["spec"])
    # The served models are on the GPU; the trial must fit beside them.
    num_slots = MAX_BEAMS if has_gpu() else int(asked["num_slots"])
    kernel_dir = asked["kernel_dir"]
    model = load(
        spec,
        cache_dir=Path(asked["cache_dir"]),
        dtype=spec.dtype,
        num_slots=num_slots,
        report=lambda sentence: _say(out, report=sentence),
        kernel_dir=None if kernel_dir is None else Path(kernel_dir),
        instruction_set=asked["instruction_set"],
    )
    write(model)


def write(model: Any) -> None:
    """Generate a few tokens with a ``LoadedModel``, in two slots, from the edges of its vocabulary.

    Raises:
        ModelUnusable: it computes values that are not finite.
    """
    import numpy as np  # noqa: PLC0415

    from textmill.engine.models.errors import ModelUnusable  # noqa: PLC0415

    vocabulary, context = model.info.vocabulary_size, model.info.context_length
    room = max(1, context - NUM_TOKENS)
    text = [*model.tokenizer.encode(_TEXT), 0]
    rows = [TrialRow(0, [0, vocabulary - 1][:room]), TrialRow(1, text[:room])]
    chunks = [(row, len(row.ids) - 1) for row in rows if len(row.ids) > 1]
    if chunks:
        model.runner.prefill(chunks)
    for _ in range(min(NUM_TOKENS, context - max(len(row.ids) for row in rows) + 1)):
        logits = model.runner.decode(rows)
        logits = np.asarray(logits.cpu() if hasattr(logits, "cpu") else logits)  # or a tensor
        if tuple(logits.shape) != (len(rows), vocabulary) or not bool(np.isfinite(logits).all()):
            raise ModelUnusable(
                "The model computes values that are not finite; its weights are damaged:"
                " copy them again."
            )
        for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
            row.ids.append(token)


def _sentence(error: Exception) -> str:
    from textmill.core.errors import TextmillError  # noqa: PLC0415

    if isinstance(error, TextmillError):
        return str(error)
    if isinstance(error, MemoryError):
        return "Out of memory; free some, or lower TEXTMILL_SLOTS."
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _say(out: IO[str], **words: str) -> None:
    print(json.dumps(words), file=out, flush=True)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
