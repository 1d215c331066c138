"""From options to texts in tokens: what is learned, and what is held out."""

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
from textmill.finetune.formats import format_read, read_examples
from textmill.finetune.holdout import HoldoutReport, hold_out
from textmill.finetune.hub import is_hub_name


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that examples were read from.

    Attributes:
        name: without its folder, which says something of the machine and nothing of the data.
        role: what its examples were used for; both, where a share of them is held out.
        sha256: of its bytes; empty for what the Hub keeps.
        num_rows: examples read, before any were dropped.
    """

    name: str
    role: Literal["training", "validation", "both"]
    sha256: str
    num_rows: int


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Of one side's texts, after cutting.

    Attributes:
        num_texts: rows of training: examples, or blocks of packed ones.
        num_tokens: all of them; ``num_learned`` are those that the loss counts.
        median_tokens: of a text.
        max_tokens: of the longest.
        num_cut_texts: texts that were too long and lost their end.
        num_cut_tokens: what they lost together.
        num_unlearnable: texts left out, as their prompt alone fills ``data.max_tokens``.
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
class Prepared:
    """All that a training needs beside the model's weights.

    Attributes:
        train: examples to learn from; ``validation`` are held out.
        train_texts: the same in tokens, packed where there are no prompts.
        validation_texts: in tokens, never packed.
        is_packed: whether examples stand behind one another in a row.
        format: how the files were read, from ``format_read``.
        fingerprint: changes with every option and every byte of the data.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    train_texts: tuple[Encoded, ...]
    validation_texts: tuple[Encoded, ...]
    is_packed: bool
    files: tuple[DataFile, ...]
    holdout: HoldoutReport
    train_counts: TokenCounts
    validation_counts: TokenCounts
    format: str
    fingerprint: str


def prepare_data(config: FinetuneConfig, base: BaseModel) -> Prepared:
    """Read, hold out, and cut into tokens.

    Raises:
        DataError: something in the data cannot be used; the message names the place.
    """
    options = config.data
    train = read_examples(options.train, options, limit=options.max_examples)
    given = read_examples(options.validation, options, split="validation")
    files = _files(config, Counter(example.place.path for example in (*train, *given)))
    train, validation, report = hold_out(
        train, given, share=options.validation_share, seed=config.seed
    )
    encoder = base.encoder(options.max_tokens)
    is_packed = all(len(example.parts) == 1 for example in train)
    train_texts, train_counts = _encoded(train, encoder, is_packed=is_packed)
    validation_texts, validation_counts = _encoded(validation, encoder, is_packed=False)
    for side, texts in (("train", train_texts), ("validation", validation_texts)):
        if not texts:
            raise DataError(
                f"data.{side}",
                "every prompt is as long as data.max_tokens, so nothing is left to learn;"
                " raise it or shorten the prompts",
            )
    return Prepared(
        train=tuple(train),
        validation=tuple(validation),
        train_texts=train_texts,
        validation_texts=validation_texts,
        is_packed=is_packed,
        files=files,
        holdout=report,
        train_counts=train_counts,
        validation_counts=validation_counts,
        format=format_read(options),
        fingerprint=_fingerprint(config, base, files, (*train, *validation)),
    )


def _encoded(
    examples: Sequence[Example], encoder: Encoder, *, is_packed: bool
) -> tuple[tuple[Encoded, ...], TokenCounts]:
    if is_packed:
        texts = pack((encoder.whole(example) for example in examples), encoder.max_tokens)
    else:
        texts = [encoder.encode(example) for example in examples]
    kept = tuple(text for text in texts if text.num_learned)
    return kept, _counts(kept, len(texts) - len(kept))


def _counts(texts: Sequence[Encoded], num_unlearnable: int) -> TokenCounts:
    lengths = [len(text.ids) for text in texts] or [0]
    cut = [text.num_cut for text in texts if text.num_cut]
    return TokenCounts(
        num_texts=len(texts),
        num_tokens=sum(lengths),
        num_learned=sum(text.num_learned for text in texts),
        median_tokens=round(statistics.median(lengths)),
        max_tokens=max(lengths),
        num_cut_texts=len(cut),
        num_cut_tokens=sum(cut),
        num_unlearnable=num_unlearnable,
    )


def _files(config: FinetuneConfig, num_rows: Counter[str]) -> tuple[DataFile, ...]:
    """What was read; of what comes from the Hub its name is all there is."""
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
    place = Path(path)
    if is_hub_name(path):  # whose rows are counted under the name and the split
        return DataFile(path, role, "", num_rows[path] or num_rows[f"{path}:{split}"])
    with place.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return DataFile(place.name, role, digest, num_rows[path])


def _fingerprint(
    config: FinetuneConfig,
    base: BaseModel,
    files: Sequence[DataFile],
    examples: Iterable[Example],
) -> str:
    """Of all that decides what the weights become; where files lie does not."""
    document: dict[str, Any] = config.model_dump(mode="json", exclude={"evaluation", "description"})
    document["base"], document["output"] = base.revision, None
    document["data"] |= {"train": [], "validation": []}
    document["files"] = [(file.role, file.sha256 or file.name) for file in files]
    if not all(file.sha256 for file in files):  # what the Hub keeps may change under its name
        document["examples"] = _digest(examples)
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _digest(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        parts = [(part.text, part.is_learned) for part in example.parts]
        digest.update(json.dumps(parts).encode())
    return digest.hexdigest()
