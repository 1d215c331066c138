"""Data preparation: from options to encoded training and validation examples."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from textmill.finetune.base_model import BaseModel
from textmill.finetune.config import FinetuneConfig
from textmill.finetune.data_files import DataFile, compute_fingerprint, describe_files
from textmill.finetune.encoding import Encoded, Encoder, pack
from textmill.finetune.errors import DataError
from textmill.finetune.examples import Example
from textmill.finetune.formats import describe_format, read_examples
from textmill.finetune.holdout import HoldoutReport, hold_out


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
    files = describe_files(config, Counter(example.location.path for example in (*train, *given)))
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
        fingerprint=compute_fingerprint(config, base.revision, files, (*train, *validation)),
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
