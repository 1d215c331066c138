"""The options of a fine-tuning: a TOML file, every option also a flag.

Reads and checks them; knows nothing of data or models.
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
    """What to learn from."""

    train: Annotated[tuple[str, ...], Field(min_length=1, description="files, or a Hub id")]
    validation: Annotated[
        tuple[str, ...], Field(description="files held out; absent: a share of train")
    ] = ()
    validation_share: Annotated[
        float, Field(gt=0, le=0.5, description="of train, held out where no file is given")
    ] = 0.05
    format: Annotated[Format, Field(description="how to read the files")] = "auto"
    prompt: Annotated[
        str | None, Field(description="template of the prompt: text with {fields}")
    ] = None
    completion: Annotated[
        str | None, Field(description="template of the completion, which is learned")
    ] = None
    max_tokens: Annotated[
        int, Field(ge=8, le=1 << 20, description="tokens of an example; more are cut, and counted")
    ] = 512
    max_examples: Annotated[
        int | None, Field(ge=1, description="take no more than the first so many of train")
    ] = None


class LoraOptions(_Section):
    """Low-rank adaptation (Hu et al., 2021)."""

    rank: Annotated[int, Field(ge=1, le=512, description="rank of the added matrices")] = 16
    alpha: Annotated[int, Field(ge=1, description="their weight is alpha / rank")] = 32
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout before them")] = 0.0
    targets: Annotated[
        tuple[str, ...], Field(min_length=1, description="names of the layers; all-linear for all")
    ] = ("all-linear",)


class TrainingOptions(_Section):
    """How to learn."""

    epochs: Annotated[float, Field(gt=0, le=1000, description="times through the data")] = 3.0
    max_steps: Annotated[int | None, Field(ge=1, description="steps, whatever the epochs say")] = (
        None
    )
    learning_rate: Annotated[
        float | None,
        Field(gt=0, le=1, description="peak; absent: 1e-3 with lora, 5e-5 with full"),
    ] = None
    schedule: Annotated[
        Literal["cosine", "linear", "constant"], Field(description="of the learning rate")
    ] = "cosine"
    warmup_share: Annotated[float, Field(ge=0, lt=1, description="of the steps")] = 0.03
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    batch_size: Annotated[int, Field(ge=1, description="examples at once on a device")] = 8
    accumulation: Annotated[int, Field(ge=1, description="batches to a step")] = 2
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], Field(description="of the products")
    ] = "auto"
    checkpoint_steps: Annotated[
        int,
        Field(ge=1, description="between two looks at validation, each with a checkpoint"),
    ] = 50
    patience: Annotated[
        int, Field(ge=1, description="looks without a better validation loss before the end")
    ] = 3
    checkpoint_examples: Annotated[
        int, Field(ge=1, description="of validation that such a look takes")
    ] = 100


class EvaluationOptions(_Section):
    """How the gain is measured."""

    examples: Annotated[
        int, Field(ge=1, description="of validation, for perplexity and bits per byte")
    ] = 1000
    texts: Annotated[
        int, Field(ge=0, description="prompts of validation to write texts for; 0 for none")
    ] = 100
    max_new_tokens: Annotated[int, Field(ge=1, description="of such a text")] = 128
    strategy: Annotated[
        Literal["greedy", "sampling", "top_k", "top_p"], Field(description="that writes them")
    ] = "greedy"


class FinetuneConfig(_Section):
    """All options of one fine-tuning."""

    base: Annotated[
        str,
        Field(min_length=1, description="as source in the models file, or a model's name there"),
    ]
    name: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="of the new model")
    ]
    output: Annotated[
        str | None, Field(min_length=1, description="folder; absent: models/NAME")
    ] = None
    method: Annotated[Literal["lora", "full"], Field(description="what is trained")] = "lora"
    description: Annotated[str, Field(max_length=200, description="one line for visitors")] = ""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED, description="of all chance")] = 0
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
        """The peak, chosen by the method where nobody did."""
        return self.training.learning_rate or (1e-3 if self.method == "lora" else 5e-5)


SECTIONS: dict[str, type[_Section]] = {
    "data": DataOptions,
    "lora": LoraOptions,
    "training": TrainingOptions,
    "evaluation": EvaluationOptions,
}


def read_config(path: Path | None, flags: Mapping[str, Mapping[str, Any]]) -> FinetuneConfig:
    """A file's options, with flags in place of those that were also given there.

    Args:
        path: a TOML file, or none.
        flags: option by option; ``""`` holds those outside sections, else the section's name.

    Returns:
        The options. Paths of a file are relative to it, those of flags to where one stands.

    Raises:
        ConfigError: the file cannot be read, or an option cannot be used.
    """
    document = _document(path) if path is not None else {}
    for section, values in flags.items():
        target = document.setdefault(section, {}) if section else document
        target.update(values)
    try:
        return FinetuneConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(_in_words(error, path)) from None


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
    data = document.get("data", {})
    for key in ("train", "validation"):
        if key in data:
            given = data[key]
            names = [given] if isinstance(given, str) else given
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ConfigError(f"{path}: data.{key} must be a path, or a list of paths.")
            data[key] = [_beside(name, path.parent) for name in names]
    for key in ("base", "output"):
        if isinstance(document.get(key), str):
            document[key] = _beside(document[key], path.parent, must_exist=key == "base")
    return document


def _beside(name: str, folder: Path, *, must_exist: bool = True) -> str:
    """A path of a file is relative to that file; a Hub id, a package or a model's name stays."""
    source = parse_source(name, folder)
    if source.kind == "hub" and not must_exist:
        return str(folder / name)
    return str(source)


def _in_words(error: ValidationError, path: Path | None) -> str:
    found = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "missing":
            found.append(f"{name} must be given")
        elif item["type"] == "extra_forbidden":
            found.append(f"{name} is no option")
        else:
            found.append(f"{name}: {item['msg'][:1].lower()}{item['msg'][1:]}")
    where = f"{path}: " if path is not None else ""
    return f"{where}{'; '.join(found)}. `textmill finetune --help` lists the options."
