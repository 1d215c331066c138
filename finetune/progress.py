"""Progress of a training: steps, loss, tokens per second, time left."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LINE_SECONDS = 30.0  # between two lines if the output is not a terminal


class ProgressBar(TrainerCallback):
    """A progress bar on a terminal; otherwise a line every ``LINE_SECONDS``, suitable for logs."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._shown = ""
        self._started, self._first_tokens = 0.0, 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Open the bar at the current step, which is not 0 in a resumed training."""
        if not state.is_world_process_zero:
            return
        is_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            mininterval=0.5 if is_terminal else LINE_SECONDS,
            maxinterval=1.0 if is_terminal else LINE_SECONDS,
            dynamic_ncols=is_terminal,
            ascii=not is_terminal,
        )
        self._started, self._first_tokens = time.monotonic(), int(state.num_input_tokens_seen)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Advance the bar."""
        if self._bar is None:
            return
        tokens = int(state.num_input_tokens_seen) - self._first_tokens
        rate = tokens / max(time.monotonic() - self._started, 1e-9)
        self._bar.set_postfix_str(f"{rate:.0f} tokens/s{self._shown}", refresh=False)
        self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show a training loss in the bar, and a validation loss on a line of its own."""
        if self._bar is None or logs is None:
            return
        if "loss" in logs:
            self._shown = f", loss {logs['loss']:.3f}"
        if "eval_loss" in logs:
            self._bar.write(
                f"step {state.global_step}: validation loss {logs['eval_loss']:.4f}",
                file=sys.stderr,
            )

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Close the bar, which remains visible."""
        if self._bar is not None:
            self._bar.close()
