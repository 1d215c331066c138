"""One run of the command: its inputs, its folder in the state folder, and the folder's lock."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from datasets import disable_progress_bars
from transformers.utils.logging import disable_progress_bar

from textmill.core.catalog.models_file import load_catalog
from textmill.core.file_lock import file_lock
from textmill.core.paths import expand_home
from textmill.core.settings import Settings
from textmill.finetune.base_model import BaseModel, Report, find_base
from textmill.finetune.config import FinetuneConfig
from textmill.finetune.errors import TrainingError
from textmill.finetune.preparation import PreparedData, prepare_data

LOCK_FILE = "lock"


@dataclass(frozen=True, slots=True)
class FinetuningRun:
    """One run of the command: its options, its base and its data.

    Attributes:
        config: the options.
        settings: of the product.
        base: the base model.
        data: the prepared data.
        folder: the run's folder in the state folder; its name contains the data's fingerprint.
        report: receives progress.
    """

    config: FinetuneConfig
    settings: Settings
    base: BaseModel
    data: PreparedData
    folder: Path
    report: Report

    @property
    def output(self) -> Path:
        """The output folder."""
        return expand_home(self.config.output or f"models/{self.config.name}").absolute()


def open_run(config: FinetuneConfig, settings: Settings, report: Report) -> FinetuningRun:
    """Find the base and prepare the data.

    Raises:
        FinetuneError: the base or the data cannot be used.
    """
    _silence_libraries()
    with PartialState().main_process_first():  # one process converts the base, the others reuse it
        base = find_base(config, load_catalog(settings), settings.home / "models", report)
    report("Reading the data.")
    data = prepare_data(config, base)
    folder = settings.home / "finetune" / f"{config.name}-{data.fingerprint}"
    return FinetuningRun(config, settings, base, data, folder, report)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a run's folder until the block ends; the kernel releases the lock of a dead process.

    Secondary processes of a distributed training rely on the lock of the main process.

    Raises:
        TrainingError: another process has locked the folder.
    """
    if not PartialState().is_main_process:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(folder / LOCK_FILE, is_blocking=False))
        except BlockingIOError:
            raise TrainingError(
                "Another process is running the same fine-tuning; wait for it, or use another"
                " --name."
            ) from None
        yield


def _silence_libraries() -> None:
    """Hide the libraries' progress bars and their warnings for developers."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    disable_progress_bar()
    disable_progress_bars()
    for name in ("transformers", "datasets", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
