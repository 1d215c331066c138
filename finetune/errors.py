"""Errors of fine-tuning; every message says what to do.

FinetuneError
├── ConfigError       an option or the configuration file is invalid
├── DataError         a record of the data is invalid; names file, line and field
└── TrainingError     the training cannot start or continue
"""

from __future__ import annotations

from textmill.core.errors import TextmillError


class FinetuneError(TextmillError):
    """Base class of all errors that fine-tuning raises on purpose."""

    code = "finetune"


class ConfigError(FinetuneError):
    """An option or the configuration file is invalid."""

    code = "finetune_config"


class DataError(FinetuneError):
    """The data are invalid; the message begins with the location.

    ``unit`` is what ``line`` counts: lines of a file, items of a JSON list, rows of a Hub dataset.
    """

    code = "finetune_data"

    def __init__(
        self,
        path: str,
        message: str,
        *,
        line: int | None = None,
        field: str | None = None,
        unit: str = "line",
    ) -> None:
        self.path, self.line, self.field = path, line, field
        location = path
        location += f", {unit} {line}" if line is not None else ""
        location += f", field {field!r}" if field is not None else ""
        super().__init__(f"{location}: {message}")


class TrainingError(FinetuneError):
    """The training cannot start or continue."""

    code = "finetune_training"
