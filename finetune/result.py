"""Everything known at the end of a fine-tuning, from which its report files are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from textmill.finetune.base_model import BaseModel
from textmill.finetune.config import FinetuneConfig
from textmill.finetune.metrics import Metrics
from textmill.finetune.preparation import PreparedData
from textmill.finetune.training import TrainingHistory


@dataclass(frozen=True, slots=True)
class FinetuningResult:
    """The inputs, the course and the figures of one fine-tuning.

    Attributes:
        config: the options.
        base: the model that training started from.
        data: the examples that were learned and held out.
        history: steps, losses and time of the training.
        metrics: the figures ``before`` and ``after`` training.
        hardware: kind and number of processors, without the machine's name.
    """

    config: FinetuneConfig
    base: BaseModel
    data: PreparedData
    history: TrainingHistory
    metrics: Mapping[str, Metrics]
    hardware: str
