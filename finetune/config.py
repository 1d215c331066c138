"""The options of a fine-tuning, from a TOML file and from flags.

Reads and validates them; knows nothing of data or models.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from textmill.core.catalog.sources import parse_source
from textmill.core.strategies import MAX_SEED
from textmill.finetune.errors import ConfigError

Format = Literal[
    "auto",
    "text",
    "plain",
    "prompt_completion",
    "question_answer",
    "messages",
    "title_abstract",
    "multi_xscience",
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataOptions(_Section):
    """The data to learn from."""

    train: Annotated[tuple[str, ...], Field(min_length=1, description="files, or a Hub id")]
    validation: Annotated[
        tuple[str, ...], Field(description="held-out files; default: a share of train")
    ] = ()
    validation_share: Annotated[
        float,
        Field(
            gt=0, le=0.5, description="share of train to hold out if no validation files are given"
        ),
    ] = 0.05
    format: Annotated[Format, Field(description="how to read the files")] = "auto"
    prompt: Annotated[
        str | None, Field(description="template of the prompt: text with {field} names")
    ] = None
    completion: Annotated[
        str | None, Field(description="template of the completion, which is learned")
    ] = None
    max_tokens: Annotated[
        int,
        Field(
            ge=8, le=1 << 20, description="maximum tokens of an example; longer ones are truncated"
        ),
    ] = 512
    max_examples: Annotated[
        int | None, Field(ge=1, description="use only the first N examples of train")
    ] = None


class LoraOptions(_Section):
    """Low-rank adaptation (Hu et al., 2021)."""

    rank: Annotated[int, Field(ge=1, le=512, description="rank of the added matrices")] = 16
    alpha: Annotated[
        int, Field(ge=1, description="the added matrices are scaled by alpha / rank")
    ] = 32
    dropout: Annotated[
        float, Field(ge=0, lt=1, description="dropout before the added matrices")
    ] = 0.0
    targets: Annotated[
        tuple[str, ...],
        Field(
            min_length=1,
            description="names of the layers to adapt; all-linear for all linear layers",
        ),
    ] = ("all-linear",)


class TrainingOptions(_Section):
    """How to train."""

    epochs: Annotated[float, Field(gt=0, le=1000, description="passes over the data")] = 3.0
    max_steps: Annotated[
        int | None, Field(ge=1, description="number of steps; overrides epochs")
    ] = None
    learning_rate: Annotated[
        float | None,
        Field(
            gt=0, le=1, description="peak learning rate; default: 1e-3 with lora, 5e-5 with full"
        ),
    ] = None
    schedule: Annotated[
        Literal["cosine", "linear", "constant"], Field(description="schedule of the learning rate")
    ] = "cosine"
    warmup_share: Annotated[
        float, Field(ge=0, lt=1, description="share of the steps for warm-up")
    ] = 0.03
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    batch_size: Annotated[int, Field(ge=1, description="examples in a batch, on each device")] = 8
    accumulation: Annotated[
        int, Field(ge=1, description="batches in a step (gradient accumulation)")
    ] = 2
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], Field(description="precision of matrix products")
    ] = "auto"
    checkpoint_steps: Annotated[
        int,
        Field(ge=1, description="steps between validations; each writes a checkpoint"),
    ] = 50
    patience: Annotated[
        int, Field(ge=1, description="validations without a lower loss before training stops")
    ] = 3
    checkpoint_examples: Annotated[
        int, Field(ge=1, description="validation examples used during training")
    ] = 100


class EvaluationOptions(_Section):
    """How the gain is measured, before and after training."""

    examples: Annotated[
        int, Field(ge=1, description="validation examples for perplexity and bits per byte")
    ] = 1000
    texts: Annotated[
        int, Field(ge=0, description="validation prompts to generate completions for; 0 for none")
    ] = 100
    max_new_tokens: Annotated[
        int, Field(ge=1, description="maximum tokens of such a completion")
    ] = 128
    strategy: Annotated[
        Literal["greedy", "sampling", "top_k", "top_p"],
        Field(description="decoding strategy of the completions"),
    ] = "greedy"


class FinetuneConfig(_Section):
    """All options of one fine-tuning."""

    base: Annotated[
        str,
        Field(min_length=1, description="a model's name in the models file, or a source as there"),
    ]
    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="name of the new model"),
    ]
    output: Annotated[
        str | None, Field(min_length=1, description="output folder; default: models/NAME")
    ] = None
    method: Annotated[
        Literal["lora", "full"], Field(description="train low-rank matrices, or all weights")
    ] = "lora"
    description: Annotated[
        str, Field(max_length=200, description="one line for the models page")
    ] = ""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED, description="seed of all random choices")] = 0
    data: DataOptions
    lora: LoraOptions = LoraOptions()
    training: TrainingOptions = TrainingOptions()
    evaluation: EvaluationOptions = EvaluationOptions()

    @field_validator("base", "output")
    @classmethod
    def _is_printable(cls, text: str | None) -> str | None:
        if text is not None and not text.isprintable():
            raise ValueError("must be one line")
        return text

    @property
    def learning_rate(self) -> float:
        """The peak learning rate; if the option is absent, it depends on the method."""
        return self.training.learning_rate or (1e-3 if self.method == "lora" else 5e-5)


SECTIONS: dict[str, type[_Section]] = {
    "data": DataOptions,
    "lora": LoraOptions,
    "training": TrainingOptions,
    "evaluation": EvaluationOptions,
}


def read_config(path: Path | None, flags: Mapping[str, Mapping[str, Any]]) -> FinetuneConfig:
    """Read options from a file and from flags; a flag overrides the file.

    Args:
        path: a TOML file, or ``None``.
        flags: section → option → value; the section is ``""`` for options outside sections.

    Returns:
        The options. Paths in the file are relative to the file, paths in flags to the working
        directory.

    Raises:
        ConfigError: the file cannot be read, or an option is invalid.
    """
    document = _document(path) if path is not None else {}
    for section, values in flags.items():
        target = document.setdefault(section, {}) if section else document
        target.update(values)
    try:
        return FinetuneConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(_message(error, path)) from None


def _document(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or 'it cannot be read'}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    for section in SECTIONS:
        if section in document and not isinstance(document[section], dict):
            raise ConfigError(f"{path}: {section} must be a table: [{section}].")
    _resolve_paths(document, path)
    return document


def _resolve_paths(document: dict[str, Any], path: Path) -> None:
    data = document.get("data", {})
    for key in ("train", "validation"):
        if key in data:
            given = data[key]
            names = [given] if isinstance(given, str) else given
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ConfigError(f"{path}: data.{key} must be a path or a list of paths.")
            data[key] = [_resolve(name, path.parent) for name in names]
    for key in ("base", "output"):
        if isinstance(document.get(key), str):
            document[key] = _resolve(document[key], path.parent, must_exist=key == "base")


def _resolve(name: str, folder: Path, *, must_exist: bool = True) -> str:
    """Resolve a path in the file against its folder; keep Hub ids, packages and model names."""
    source = parse_source(name, folder)
    if source.kind == "hub" and not must_exist:
        return str(folder / name)
    return str(source)


def _message(error: ValidationError, path: Path | None) -> str:
    found = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "missing":
            found.append(f"{name} is required")
        elif item["type"] == "extra_forbidden":
            found.append(f"{name} is not an option")
        else:
            found.append(f"{name}: {item['msg'][:1].lower()}{item['msg'][1:]}")
    where = f"{path}: " if path is not None else ""
    return f"{where}{'; '.join(found)}. `textmill finetune --help` lists the options."
