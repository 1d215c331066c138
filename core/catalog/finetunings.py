"""What a fine-tuning says of itself: base, method, data, training, figures before and after.

The part of a folder's ``finetune.json`` that visitors see, checked: the file may come from a
stranger. The worker reads it from the folder, the web side from the database, and clients get it
under the same names. Knows nothing of folders and tables.
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

MAX_FILES = 256  # more would make no page that anybody reads
MAX_LINE_CHARACTERS = 300


def _in_one_line(value: object) -> object:
    """Text without line breaks, controls and marks that turn the direction of what follows."""
    if not isinstance(value, str):
        return value
    text = "".join(c if c.isprintable() else " " for c in value)
    return " ".join(text.split())


def _without_folder(value: object) -> object:
    """A folder on the machine of whoever trained is nobody's business: its own name is enough."""
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
    """Takes what it knows from a larger document; never changes."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class TrainingFile(_Facts):
    """A file that examples were read from; ``sha256`` is empty for what the Hub keeps."""

    name: Annotated[Line, BeforeValidator(_without_folder)]
    role: Literal["training", "validation", "both"]
    sha256: Annotated[str, Field(pattern=r"^(?:[0-9a-f]{64})?$")]
    num_rows: Count


class Examples(_Facts):
    """Of one side, after all that was dropped."""

    num_examples: Count


class TrainingData(_Facts):
    """What was learned from, and what was held out."""

    format: Line
    files: Annotated[tuple[TrainingFile, ...], Field(max_length=MAX_FILES)]
    training: Examples
    validation: Examples
    num_duplicates: Count
    num_overlapping: Count


class TrainingRun(_Facts):
    """How it was trained; ``best_step`` is the one whose weights were kept."""

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
    """Of texts written for held-out prompts; shares from 0 to 1.

    ``memorised`` is of the 8-grams that stand in the training data, ``reference_memorised`` the
    same of the held-out texts, which nobody copied.
    """

    num_texts: Count
    rouge: RougeScores
    distinct1: Share
    distinct2: Share
    distinct3: Share
    memorised: Share
    reference_memorised: Share


class Scores(_Facts):
    """A model on held-out examples; ``texts`` is null where it wrote none."""

    num_examples: Count
    num_tokens: Count
    perplexity: Number
    bits_per_byte: Number
    texts: TextScores | None


class BeforeAndAfter(_Facts):
    """The base and what became of it, on the same examples."""

    before: Scores
    after: Scores


class Finetuning(_Facts):
    """Where a model comes from.

    ``base`` is a Hub id, a package, or a folder's own name; ``base_revision`` stands for the very
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
            source: as the models file has it.
            revision: ``None`` where no worker has loaded it yet; then the source decides.
        """
        if revision is not None:
            return revision == self.base_revision
        return _without_folder(source) == self.base


def parse_finetuning(content: bytes) -> Finetuning:
    """Read a ``finetune.json``.

    Raises:
        ValueError: one sentence that names the first place that is wrong.
    """
    try:
        return Finetuning.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(_first_problem(error)) from error


def stored_finetuning(document: object) -> Finetuning | None:
    """What the database has; ``None`` for nothing, or what another release wrote differently."""
    try:
        return None if document is None else Finetuning.model_validate(document)
    except ValidationError:
        return None


def as_document(finetuning: Finetuning) -> dict[str, Any]:
    """Plain JSON, which ``stored_finetuning`` reads back."""
    return finetuning.model_dump(mode="json")


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = str(_in_one_line(first["msg"]))[:200]
    return f"{where}: {message}" if where else message
