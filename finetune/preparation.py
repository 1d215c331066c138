"""Data preparation: from options to encoded training and validation examples."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from textmill.finetune.base_model import BaseModel
from textmill.finetune.config import FinetuneConfig
from textmill.finetune.encoding import Encoded, Encoder, pack
from textmill.finetune.errors import DataError
from textmill.finetune.examples import Example
from textmill.finetune.formats import describe_format, read_examples
from textmill.finetune.holdout import HoldoutReport, hold_out
from textmill.finetune.hub import is_hub_name


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that examples were read from.

    Attributes:
        name: without its folder, which describes the machine rather than the data.
        role: the use of its examples; ``both`` if a share of them is held out.
        sha256: of the file's bytes; empty for Hub datasets.
        num_rows: examples read, before any were dropped.
    """

    name: str
    role: Literal["training", "validation", "both"]
    sha256: str
    num_rows: int


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Token counts of train or validation, after truncation.

    The names of the fields are those of ``finetune.json``.

    Attributes:
        num_texts: encoded examples, or blocks of packed ones.
        num_tokens: their tokens.
        num_learned: the tokens that the loss counts.
        median_tokens: the median length.
        max_tokens: the maximum length.
        num_cut_texts: examples that were truncated.
        num_cut_tokens: tokens cut from them in all.
        num_unlearnable: examples dropped because their prompt alone fills ``data.max_tokens``.
    """

    num_texts: int
    num_tokens: int
    num_learned: int
    median_tokens: int
    max_tokens: int
    num_cut_texts: int
    num_cut_tokens: int
    num_unlearnable: int


@dataclass(frozen=True, slots=True)
class PreparedData:
    """The data of a training.

    Attributes:
        train: training examples.
        validation: held-out examples.
        encoded_train: the training examples as tokens, packed if they have no prompts.
        encoded_validation: the held-out examples as tokens, never packed.
        is_packed: whether training examples are packed into blocks.
        files: the files that examples were read from.
        holdout: the examples that were dropped.
        train_counts: token counts of ``encoded_train``.
        validation_counts: token counts of ``encoded_validation``.
        format: how the files were read; see ``describe_format``.
        fingerprint: a hash of all options and data that affect the weights.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    encoded_train: tuple[Encoded, ...]
    encoded_validation: tuple[Encoded, ...]
    is_packed: bool
    files: tuple[DataFile, ...]
    holdout: HoldoutReport
    train_counts: TokenCounts
    validation_counts: TokenCounts
    format: str
    fingerprint: str

    @property
    def num_duplicates(self) -> int:
        """Examples of train and validation that were dropped as duplicates of an earlier one."""
        return self.holdout.train_duplicates.count + self.holdout.validation_duplicates.count


def prepare_data(config: FinetuneConfig, base: BaseModel) -> PreparedData:
    """Read the data, split them, and encode them.

    Raises:
        DataError: the data are invalid; the message names the location.
    """
    options = config.data
    train = read_examples(options.train, options, limit=options.max_examples)
    given = read_examples(options.validation, options, split="validation")
    files = _files(config, Counter(example.location.path for example in (*train, *given)))
    train, validation, holdout = hold_out(
        train, given, share=options.validation_share, seed=config.seed
    )
    encoder = base.encoder(options.max_tokens)
    is_packed = all(len(example.parts) == 1 for example in train)
    encoded_train, train_counts = _encoded(train, encoder, is_packed=is_packed)
    encoded_validation, validation_counts = _encoded(validation, encoder, is_packed=False)
    for side, encoded in (("train", encoded_train), ("validation", encoded_validation)):
        if not encoded:
            raise DataError(
                f"data.{side}",
                "every prompt alone has data.max_tokens tokens, so nothing is left to learn;"
                " raise it or shorten the prompts.",
            )
    return PreparedData(
        train=tuple(train),
        validation=tuple(validation),
        encoded_train=encoded_train,
        encoded_validation=encoded_validation,
        is_packed=is_packed,
        files=files,
        holdout=holdout,
        train_counts=train_counts,
        validation_counts=validation_counts,
        format=describe_format(options),
        fingerprint=_fingerprint(config, base, files, (*train, *validation)),
    )


def _encoded(
    examples: Sequence[Example], encoder: Encoder, *, is_packed: bool
) -> tuple[tuple[Encoded, ...], TokenCounts]:
    if is_packed:
        untruncated = (encoder.encode_untruncated(example) for example in examples)
        encoded = pack(untruncated, encoder.max_tokens)
    else:
        encoded = [encoder.encode(example) for example in examples]
    kept = tuple(one for one in encoded if one.num_learned)
    return kept, _counts(kept, len(encoded) - len(kept))


def _counts(encoded: Sequence[Encoded], num_unlearnable: int) -> TokenCounts:
    lengths = [len(one.ids) for one in encoded] or [0]
    cut = [one.num_cut for one in encoded if one.num_cut]
    return TokenCounts(
        num_texts=len(encoded),
        num_tokens=sum(lengths),
        num_learned=sum(one.num_learned for one in encoded),
        median_tokens=round(statistics.median(lengths)),
        max_tokens=max(lengths),
        num_cut_texts=len(cut),
        num_cut_tokens=sum(cut),
        num_unlearnable=num_unlearnable,
    )


def _files(config: FinetuneConfig, num_rows: Counter[str]) -> tuple[DataFile, ...]:
    """The files that were read; Hub datasets are known by name only."""
    role: Literal["training", "both"] = "training" if config.data.validation else "both"
    files = [_file(path, role, "train", num_rows) for path in config.data.train]
    files += [_file(path, "validation", "validation", num_rows) for path in config.data.validation]
    return tuple(files)


def _file(
    path: str,
    role: Literal["training", "validation", "both"],
    split: str,
    num_rows: Counter[str],
) -> DataFile:
    file = Path(path)
    if is_hub_name(path):  # its rows are counted under the name with the split
        return DataFile(path, role, "", num_rows[path] or num_rows[f"{path}:{split}"])
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return DataFile(file.name, role, digest, num_rows[path])


def _fingerprint(
    config: FinetuneConfig,
    base: BaseModel,
    files: Sequence[DataFile],
    examples: Iterable[Example],
) -> str:
    """A hash of everything that affects the weights; the location of files does not."""
    document: dict[str, Any] = config.model_dump(mode="json", exclude={"evaluation", "description"})
    document["base"], document["output"] = base.revision, None
    document["data"] |= {"train": [], "validation": []}
    document["files"] = [(file.role, file.sha256 or file.name) for file in files]
    if not all(file.sha256 for file in files):  # a Hub dataset may change under the same name
        document["examples"] = _digest(examples)
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _digest(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        parts = [(part.text, part.is_learned) for part in example.parts]
        digest.update(json.dumps(parts).encode())
    return digest.hexdigest()
