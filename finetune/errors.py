"""Errors of fine-tuning; every message says what to do.

FinetuneError
├── ConfigError       an option or the configuration's file cannot be used
├── DataError         a line of the data cannot be used; names file, line and field
└── TrainingError     the training cannot go on
"""

from __future__ import annotations

from textmill.core.errors import TextmillError


class FinetuneError(TextmillError):
    """Root of what is raised here on purpose."""

    code = "finetune"


class ConfigError(FinetuneError):
    """An option, or the file that holds them, cannot be used."""

    code = "finetune_config"


class DataError(FinetuneError):
    """The data cannot be used; the message begins with the place.

    ``unit`` is what ``line`` counts: lines of a file, items of a JSON list, rows of the Hub.
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
        place = path
        place += f", {unit} {line}" if line is not None else ""
        place += f", field {field!r}" if field is not None else ""
        super().__init__(f"{place}: {message}")


class TrainingError(FinetuneError):
    """The training cannot start or go on."""

    code = "finetune_training"
