"""The record of a fine-tuning: base, method, data, training, figures before and after.

This is the part of a folder's ``finetune.json`` that visitors see. It is validated, because the
file may come from a stranger. The worker reads it from the folder and the web side from the
database; clients get it under the same names. Knows nothing of folders and tables.
"""

from __future__ import annotations

from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

MAX_FILES = 256  # more would make an unreadable page
MAX_LINE_CHARACTERS = 300


def _in_one_line(value: object) -> object:
    """The text without line breaks, control characters and direction marks."""
    if not isinstance(value, str):
        return value
    text = "".join(c if c.isprintable() else " " for c in value)
    return " ".join(text.split())


def _without_folder(value: object) -> object:
    """Only the name of a path: the folders of the training machine are private."""
    if not isinstance(value, str):
        return value
    for kind in (PurePosixPath, PureWindowsPath):
        path: PurePath = kind(value)
        if path.is_absolute() or value.startswith((".", "~")):
            return path.name or value
    return value


Line = Annotated[str, BeforeValidator(_in_one_line), Field(max_length=MAX_LINE_CHARACTERS)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=0, le=10**15)]
Share = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1)]


class _Facts(BaseModel):
    """An immutable part of a larger document; other fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class TrainingFile(_Facts):
    """A file that examples were read from; ``sha256`` is empty for files on the Hub."""

    name: Annotated[Line, BeforeValidator(_without_folder)]
    role: Literal["training", "validation", "both"]
    sha256: Annotated[str, Field(pattern=r"^(?:[0-9a-f]{64})?$")]
    num_rows: Count


class Examples(_Facts):
    """The examples of one side (training or validation), without those that were dropped."""

    num_examples: Count


class TrainingData(_Facts):
    """The data of the training, and of the validation."""

    format: Line
    files: Annotated[tuple[TrainingFile, ...], Field(max_length=MAX_FILES)]
    training: Examples
    validation: Examples
    num_duplicates: Count
    num_overlapping: Count


class TrainingRun(_Facts):
    """The training; ``best_step`` is the step whose weights were kept."""

    num_steps: Count
    best_step: Count
    num_tokens: Count
    seconds: Number
    hardware: Line


class RougeScores(_Facts):
    """F1 from 0 to 1."""

    rouge1: Share
    rouge2: Share
    rouge_l: Share


class TextScores(_Facts):
    """Scores of texts generated for held-out prompts; shares from 0 to 1.

    ``memorised`` is the share of their 8-grams that occur in the training data, and
    ``reference_memorised`` the same share for the held-out texts themselves.
    """

    num_texts: Count
    rouge: RougeScores
    distinct1: Share
    distinct2: Share
    distinct3: Share
    memorised: Share
    reference_memorised: Share


class Scores(_Facts):
    """The scores of a model on held-out examples; ``texts`` is null if it generated none."""

    num_examples: Count
    num_tokens: Count
    perplexity: Number
    bits_per_byte: Number
    texts: TextScores | None


class BeforeAndAfter(_Facts):
    """The scores of the base and of the tuned model on the same examples."""

    before: Scores
    after: Scores


class Finetuning(_Facts):
    """The origin of a fine-tuned model.

    ``base`` is a Hub id, a package, or the name of a folder; ``base_revision`` identifies the exact
    weights, as a model's ``revision`` does.
    """

    base: Annotated[Line, BeforeValidator(_without_folder), Field(min_length=1)]
    base_revision: Annotated[Line, Field(min_length=1)]
    method: Literal["lora", "full"]
    data: TrainingData
    training: TrainingRun
    metrics: BeforeAndAfter

    def is_from(self, *, source: str, revision: str | None) -> bool:
        """Whether a model with that source and revision is the base.

        Args:
            source: as in the models file.
            revision: ``None`` if no worker has loaded the model; then the source decides.
        """
        if revision is not None:
            return revision == self.base_revision
        return _without_folder(source) == self.base


def parse_finetuning(content: bytes) -> Finetuning:
    """Read a ``finetune.json``.

    Raises:
        ValueError: the message names the first invalid field.
    """
    try:
        return Finetuning.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(_first_problem(error)) from error


def stored_finetuning(document: object) -> Finetuning | None:
    """The record in the database; ``None`` if there is none, or in the form of another release."""
    try:
        return None if document is None else Finetuning.model_validate(document)
    except ValidationError:
        return None


def as_document(finetuning: Finetuning) -> dict[str, Any]:
    """The record as JSON, which ``stored_finetuning`` reads."""
    return finetuning.model_dump(mode="json")


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = str(_in_one_line(first["msg"]))[:200]
    return f"{where}: {message}" if where else message
