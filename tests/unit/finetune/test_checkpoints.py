"""Checkpoints after a power cut: complete ones are used, torn and final ones are not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from textmill.finetune.checkpoints import (
    MARKER_FILE,
    CheckpointMarker,
    FiniteLossCheck,
    Stopwatch,
    usable_checkpoint,
)
from textmill.finetune.errors import TrainingError


def checkpoint(
    folder: Path,
    step: int,
    *,
    is_complete: bool = True,
    max_steps: int = 100,
    is_stopped: bool = False,
) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    state = TrainerState(global_step=step, max_steps=max_steps)
    # As the Trainer writes it; the annotation is that of the constructor's argument.
    control = {"args": {"should_training_stop": is_stopped}, "attributes": {}}
    vars(state)["stateful_callbacks"] = {"TrainerControl": control}
    state.save_to_json(str(path / "trainer_state.json"))
    if is_complete:
        (path / MARKER_FILE).touch()
    return path


def test_without_checkpoints_training_starts_from_the_beginning(tmp_path: Path) -> None:
    assert usable_checkpoint(tmp_path / "missing") is None


def test_the_newest_complete_checkpoint_is_chosen_by_number_not_by_name(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    assert usable_checkpoint(tmp_path) == newest


def test_a_torn_checkpoint_is_skipped_and_deleted(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 50)
    torn = checkpoint(tmp_path, 60, is_complete=False)
    (torn / "trainer_state.json").write_text('{"global_st')
    (tmp_path / "checkpoint-70").mkdir()  # nothing was written yet
    assert usable_checkpoint(tmp_path) == whole
    assert os.listdir(tmp_path) == ["checkpoint-50"]


@pytest.mark.parametrize(("max_steps", "is_stopped"), [(60, False), (100, True)])
def test_the_checkpoint_after_the_last_step_is_not_used(
    tmp_path: Path, max_steps: int, is_stopped: bool
) -> None:
    before = checkpoint(tmp_path, 50, max_steps=max_steps)
    checkpoint(tmp_path, 60, max_steps=max_steps, is_stopped=is_stopped)
    assert usable_checkpoint(tmp_path) == before


def test_only_the_main_process_marks_a_checkpoint(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 5, is_complete=False)
    (path / "inner").mkdir()
    (path / "inner" / "weights").write_text("w")
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state = TrainerState(global_step=5, is_world_process_zero=False)
    CheckpointMarker().on_save(arguments, state, TrainerControl())
    assert not (path / MARKER_FILE).exists()
    state.is_world_process_zero = True
    CheckpointMarker().on_save(arguments, state, TrainerControl())
    assert (path / MARKER_FILE).exists()


@pytest.mark.parametrize("logs", [{"loss": float("nan")}, {"eval_loss": float("inf")}])
def test_a_loss_that_is_not_finite_stops_the_training(
    tmp_path: Path, logs: dict[str, float]
) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    watch = FiniteLossCheck()
    watch.on_log(arguments, TrainerState(), TrainerControl(), logs={"loss": 3.0})
    with pytest.raises(TrainingError, match=r"step 7; lower training\.learning_rate"):
        watch.on_log(arguments, TrainerState(global_step=7), TrainerControl(), logs=logs)


def test_the_stopwatch_continues_after_an_interruption() -> None:
    kept = json.loads(json.dumps(Stopwatch(5.0).state()))
    from_state: Callable[[object], object] = Stopwatch.from_state
    again = from_state(kept)
    assert isinstance(again, Stopwatch)
    assert again.total() >= again.seconds >= 5.0
