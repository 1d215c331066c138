"""The split into training and validation examples, without duplicates and without overlap.

Two texts are equal if they are equal after Unicode NFC normalization, case folding and replacing
every run of white space by one space. Of duplicates the first is kept. Examples in both sets are
dropped from train, never from validation. Knows nothing of files or tokens.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePath

from textmill.finetune.errors import DataError
from textmill.finetune.examples import Example, Location

_NUM_SAMPLES = 3
# A short completion (yes, 42, a label) may answer many prompts. A longer one that is also in
# validation counts as overlap.
_SHORT_CHARACTERS = 50
# A completion of this many training prompts is an answer that they share, not a copy.
_MIN_SHARED_PROMPTS = 4
# 128 bits: among a billion different texts, the probability that two share a digest is about 2e-21.
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A dropped example, and the earlier one that it equals."""

    location: Location
    of: Location

    def __str__(self) -> str:
        return f"{_short(self.location)} duplicates {_short(self.of)}"


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The number of dropped examples, and the first few of them."""

    count: int = 0
    samples: tuple[Duplicate, ...] = ()

    def add(self, location: Location, of: Location) -> Duplicates:
        """With one more dropped example."""
        more = (Duplicate(location, of),) if len(self.samples) < _NUM_SAMPLES else ()
        return Duplicates(self.count + 1, self.samples + more)


@dataclass(frozen=True, slots=True)
class HoldoutReport:
    """The examples that were dropped.

    Attributes:
        train_duplicates: within train.
        validation_duplicates: within the given validation data; none if validation is a share of
            train.
        overlaps: training examples whose text or long completion is also in validation.
    """

    train_duplicates: Duplicates
    validation_duplicates: Duplicates
    overlaps: Duplicates

    def sentences(self) -> tuple[str, ...]:
        """A sentence for each kind of dropped examples."""
        kinds = (
            (self.train_duplicates, "dropped from train as duplicates"),
            (self.validation_duplicates, "dropped from validation as duplicates"),
            (self.overlaps, "dropped from train because they are also in validation"),
        )
        return tuple(
            f"{dropped.count:,} {'example' if dropped.count == 1 else 'examples'} {why}:"
            f" {', '.join(map(str, dropped.samples))}{', …' * (dropped.count > _NUM_SAMPLES)}."
            for dropped, why in kinds
            if dropped.count
        )


def hold_out(
    train: Sequence[Example], validation: Sequence[Example], *, share: float, seed: int
) -> tuple[list[Example], list[Example], HoldoutReport]:
    """Drop duplicates, hold out a share if no validation is given, and drop overlaps from train.

    Args:
        train: at least one example.
        validation: may be empty.
        share: of train without duplicates, held out if ``validation`` is empty.
        seed: of the choice. It depends only on the seed and the texts, so the same data give the
            same split in any order.

    Returns:
        Train and validation, at least one example each, and the dropped examples.

    Raises:
        DataError: train or validation would be empty.
    """
    distinct, train_duplicates = _without_duplicates(train)
    held, validation_duplicates = _without_duplicates(validation)
    if not held:
        distinct, held = _split(distinct, share, seed)
    kept, overlaps = _without_overlaps(distinct, held)
    if not kept:
        raise DataError(
            distinct[0].location.path,
            "every example is also in validation, so none is left to train on. Hold out other"
            " texts.",
        )
    return kept, held, HoldoutReport(train_duplicates, validation_duplicates, overlaps)


def _without_duplicates(examples: Sequence[Example]) -> tuple[list[Example], Duplicates]:
    seen: dict[bytes, Location] = {}
    kept: list[Example] = []
    duplicates = Duplicates()
    for example in examples:
        digest = _digest(example.text)
        if digest in seen:
            duplicates = duplicates.add(example.location, seen[digest])
        else:
            seen[digest] = example.location
            kept.append(example)
    return kept, duplicates


def _split(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, validation), each in the order of ``examples``.

    Examples with the same long completion form a group that is held out as a whole, because they
    would otherwise be dropped as overlaps. Groups are held out in the order of their digests until
    the share is reached without exceeding it; at least one group is held out.
    """
    if len(examples) < 2:
        raise DataError(
            examples[0].location.path,
            "contains only one text, so no share can be held out. Give more examples, or validation"
            " files.",
        )
    groups = _groups(examples, seed)
    if len(groups) == 1:
        raise DataError(
            examples[0].location.path,
            "all examples have the same completion, so none can be held out. Give more examples, or"
            " validation files.",
        )
    wanted = min(max(1, round(share * len(examples))), len(examples) - 1)
    held: set[int] = set()
    for group in groups:
        if len(held) + len(group) <= wanted:
            held.update(group)
    if not held:
        smallest = min(groups, key=len)
        held.update(smallest)
    train = [example for index, example in enumerate(examples) if index not in held]
    return train, [examples[index] for index in sorted(held)]


def _groups(examples: list[Example], seed: int) -> list[list[int]]:
    """The indexes of examples with the same long completion, in the order of their digests."""
    key = seed.to_bytes(8, "big")  # core.strategies.MAX_SEED is below 2**63
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        is_long = _is_long(example.completion)
        groups[_digest(example.completion if is_long else example.text, key)].append(index)
    return [group for _, group in sorted(groups.items())]


def _without_overlaps(
    train: Sequence[Example], validation: Sequence[Example]
) -> tuple[list[Example], Duplicates]:
    """Drop training examples whose text, or long completion of few prompts, is in validation.

    A completion that many prompts share is an answer to learn, not a copy of one example.
    """
    texts = {_digest(example.text): example.location for example in reversed(validation)}
    completions = {
        _digest(example.completion): example.location
        for example in reversed(validation)
        if _is_long(example.completion)
    }
    counts = Counter(_digest(example.completion) for example in train)
    kept: list[Example] = []
    overlaps = Duplicates()
    for example in train:
        completion = _digest(example.completion)
        location = texts.get(_digest(example.text))
        if location is None and counts[completion] < _MIN_SHARED_PROMPTS:
            location = completions.get(completion)  # contains only long ones
        if location is None:
            kept.append(example)
        else:
            overlaps = overlaps.add(example.location, location)
    return kept, overlaps


def _short(location: Location) -> str:
    """File name and line; folders are private to the machine."""
    return f"{PurePath(location.path).name}:{location.line}"


def _is_long(completion: str) -> bool:
    return len(_normal(completion)) > _SHORT_CHARACTERS


def _digest(text: str, key: bytes = b"") -> bytes:
    return blake2b(_normal(text).encode(), digest_size=_DIGEST_BYTES, key=key).digest()


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
