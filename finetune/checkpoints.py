"""Checkpoints that can be trusted after a power cut, and what must survive with them.

The Trainer writes into a checkpoint's folder file by file; here a mark, written when all of it is
on the disk, tells a whole one from a torn one.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from textmill.finetune.errors import TrainingError

MARK = "whole"
_NAME = re.compile(r"checkpoint-(\d+)")


class WholeCheckpoints(TrainerCallback):
    """Brings each checkpoint to the disk and marks it."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Behind everything that the Trainer writes."""
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        if not state.is_world_process_zero or not folder.is_dir():
            return
        for path in folder.rglob("*"):
            if path.is_file():
                _sync(path)
        (folder / MARK).touch()
        _sync(folder)


class FiniteLosses(TrainerCallback):
    """Ends a training whose loss is no number: the steps after it would be lost time."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """A new loss, of training or of validation."""
        for name in ("loss", "eval_loss"):
            if not math.isfinite((logs or {}).get(name, 0.0)):
                raise TrainingError(
                    f"The loss is not a number any more at step {state.global_step};"
                    " lower training.learning_rate."
                )


class Stopwatch(TrainerCallback, ExportableState):
    """Seconds in the loop, those before interruptions included.

    Attributes:
        seconds: until the last checkpoint of earlier processes.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        """The Trainer calls it with what ``state`` kept."""
        self.seconds = seconds
        self._started = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """What came before the loop does not count."""
        self._started = time.monotonic()

    def total(self) -> float:
        """Seconds until now."""
        return self.seconds + time.monotonic() - self._started

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {"seconds": self.total()}, "attributes": {}}


def usable_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint to go on from; what is newer and cannot be used is removed.

    That is a torn one, and the one at the end: a process that dies behind it makes the last steps
    again, since the Trainer, resumed there, would make one too many.

    Args:
        folder: of the checkpoints; may be missing.
    """
    found = [
        (int(name[1]), path)
        for path in folder.glob("checkpoint-*")
        if (name := _NAME.fullmatch(path.name))
    ]
    for _, path in sorted(found, reverse=True):
        if (path / MARK).is_file() and not _is_at_the_end(path):
            return path
        shutil.rmtree(path)
    return None


def _is_at_the_end(checkpoint: Path) -> bool:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    control = state["stateful_callbacks"].get("TrainerControl", {})
    is_stopped = control.get("args", {}).get("should_training_stop", False)
    return bool(state["global_step"] >= state["max_steps"] or is_stopped)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
