"""Checkpoints that survive a power cut, and Trainer callbacks whose state they keep.

The Trainer writes a checkpoint's folder file by file. A marker file, written after all files are on
disk, distinguishes complete checkpoints from torn ones.
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

MARKER_FILE = "whole"
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointMarker(TrainerCallback):
    """Flushes each checkpoint to disk, then writes its marker file."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Runs after the Trainer has written the checkpoint."""
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        if not state.is_world_process_zero or not folder.is_dir():
            return
        for path in folder.rglob("*"):
            if path.is_file():
                _sync(path)
        (folder / MARKER_FILE).touch()
        _sync(folder)


class FiniteLossCheck(TrainerCallback):
    """Stops a training whose loss is no longer finite; further steps would be wasted."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Check the training or validation loss that was just logged.

        Raises:
            TrainingError: it is infinite or not a number.
        """
        for name in ("loss", "eval_loss"):
            if not math.isfinite((logs or {}).get(name, 0.0)):
                raise TrainingError(
                    f"The loss is no longer finite at step {state.global_step};"
                    " lower training.learning_rate."
                )


class Stopwatch(TrainerCallback, ExportableState):
    """Seconds spent in the training loop, over all processes of an interrupted training.

    Attributes:
        seconds: up to the last checkpoint of earlier processes.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        """The Trainer passes the ``args`` that ``state`` saved in a checkpoint."""
        self.seconds = seconds
        self._started = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock; time before the loop does not count."""
        self._started = time.monotonic()

    def total(self) -> float:
        """Seconds so far, including earlier processes."""
        return self.seconds + time.monotonic() - self._started

    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint."""
        return {"args": {"seconds": self.total()}, "attributes": {}}


def usable_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint from which training can resume; newer, unusable ones are deleted.

    Unusable are torn checkpoints and the one after the last step: when the Trainer resumes from the
    latter it makes one step too many, so a process that died after it repeats the last steps.

    Args:
        folder: contains the checkpoints; may be missing.
    """
    found = [
        (int(name[1]), path)
        for path in folder.glob("checkpoint-*")
        if (name := _NAME.fullmatch(path.name))
    ]
    for _, path in sorted(found, reverse=True):
        if (path / MARKER_FILE).is_file() and not _is_after_last_step(path):
            return path
        shutil.rmtree(path)
    return None


def _is_after_last_step(checkpoint: Path) -> bool:
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
