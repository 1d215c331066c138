"""The holdout: what is trained on and what is validated on, with nothing in both.

Texts are the same when they are so after Unicode NFC, without case, and with every run of white
space as one space. Of repeats the first stays. Validation, which measures, never gives way to
train. Knows nothing of files or tokens.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePath

from textmill.finetune.errors import DataError
from textmill.finetune.examples import Example, Place

_NUM_SAMPLES = 3
# A short completion (yes, 42, a label) is rightly the answer to many prompts; a longer one that
# stands in validation too was seen.
_SHORT_CHARACTERS = 50
_SHARED = 4  # prompts of train with one completion, from which on it is an answer, not a copy
# 128 bits: among a billion texts, two different ones share a digest with probability 2e-21.
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Repeat:
    """An example that was dropped, and the one that says the same."""

    place: Place
    of: Place

    def __str__(self) -> str:
        return f"{_named(self.place)} repeats {_named(self.of)}"


@dataclass(frozen=True, slots=True)
class Repeats:
    """How many examples were dropped, and the first few of them."""

    count: int = 0
    samples: tuple[Repeat, ...] = ()

    def and_one(self, place: Place, of: Place) -> Repeats:
        """One more."""
        more = (Repeat(place, of),) if len(self.samples) < _NUM_SAMPLES else ()
        return Repeats(self.count + 1, self.samples + more)


@dataclass(frozen=True, slots=True)
class HoldoutReport:
    """What was dropped.

    Attributes:
        train_repeats: within train.
        validation_repeats: within the given validation; none where it is a share of train.
        overlaps: examples of train whose text or long completion is validation's too.
    """

    train_repeats: Repeats
    validation_repeats: Repeats
    overlaps: Repeats

    def sentences(self) -> tuple[str, ...]:
        """A sentence for each kind of which there are any."""
        kinds = (
            (self.train_repeats, "dropped from train as repeats"),
            (self.validation_repeats, "dropped from validation as repeats"),
            (self.overlaps, "dropped from train because validation has the same"),
        )
        return tuple(
            f"{repeats.count:,} {'example' if repeats.count == 1 else 'examples'} {what}:"
            f" {', '.join(map(str, repeats.samples))}{', …' * (repeats.count > _NUM_SAMPLES)}."
            for repeats, what in kinds
            if repeats.count
        )


def hold_out(
    train: Sequence[Example], validation: Sequence[Example], *, share: float, seed: int
) -> tuple[list[Example], list[Example], HoldoutReport]:
    """Drop repeats, hold a share out where no validation is given, and drop overlaps from train.

    Args:
        train: at least one example.
        validation: may be empty.
        share: of train after its repeats are gone, held out where ``validation`` is empty.
        seed: of the choice. An example's chance depends on the seed and its text alone, so the
            same data give the same split, in whatever order.

    Returns:
        Train, validation, at least one example in each, and what was dropped.

    Raises:
        DataError: no example would remain on one side.
    """
    distinct, train_repeats = _without_repeats(train)
    held, validation_repeats = _without_repeats(validation)
    if not held:
        distinct, held = _split(distinct, share, seed)
    kept, overlaps = _without_overlaps(distinct, held)
    if not kept:
        raise DataError(
            distinct[0].place.path,
            "every example stands in validation too, so that none is left to train on. Hold other"
            " texts out.",
        )
    return kept, held, HoldoutReport(train_repeats, validation_repeats, overlaps)


def _without_repeats(examples: Sequence[Example]) -> tuple[list[Example], Repeats]:
    seen: dict[bytes, Place] = {}
    kept: list[Example] = []
    repeats = Repeats()
    for example in examples:
        digest = _digest(example.text)
        if digest in seen:
            repeats = repeats.and_one(example.place, seen[digest])
        else:
            seen[digest] = example.place
            kept.append(example)
    return kept, repeats


def _split(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, validation), each in the order of ``examples``; the lowest digests are held out.

    The share is what comes nearest from below with whole groups of equal long completions, and one
    group at least.
    """
    if len(examples) < 2:
        raise DataError(
            examples[0].place.path,
            "holds a single text, of which no share can be held out. Give more examples, or"
            " validation files.",
        )
    wanted = min(max(1, round(share * len(examples))), len(examples) - 1)
    key = seed.to_bytes(8, "big")  # core.strategies.MAX_SEED is below 2**63
    # What answers alike stays together, or it would be dropped again as an overlap.
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        is_long = _is_long(example.completion)
        groups[_digest(example.completion if is_long else example.text, key)].append(index)
    if len(groups) == 1:
        raise DataError(
            examples[0].place.path,
            "all examples have the same completion, so that none can be held out. Give more"
            " examples, or validation files.",
        )
    held: set[int] = set()
    for _, group in sorted(groups.items()):
        if len(held) + len(group) <= wanted:
            held.update(group)
    if not held:
        smallest = min(groups.values(), key=len)
        held.update(smallest)
    train = [example for index, example in enumerate(examples) if index not in held]
    return train, [examples[index] for index in sorted(held)]


def _without_overlaps(
    train: Sequence[Example], validation: Sequence[Example]
) -> tuple[list[Example], Repeats]:
    """Drop from train what validation has: the text, or a long completion that few prompts share.

    A completion that many prompts share is an answer to learn, not a copy of one example.
    """
    texts = {_digest(example.text): example.place for example in reversed(validation)}
    completions = {
        _digest(example.completion): example.place
        for example in reversed(validation)
        if _is_long(example.completion)
    }
    counts = Counter(_digest(example.completion) for example in train)
    kept: list[Example] = []
    overlaps = Repeats()
    for example in train:
        place = texts.get(_digest(example.text))
        if (
            place is None
            and counts[_digest(example.completion)] < _SHARED
            and _is_long(example.completion)
        ):
            place = completions.get(_digest(example.completion))
        if place is None:
            kept.append(example)
        else:
            overlaps = overlaps.and_one(example.place, place)
    return kept, overlaps


def _named(place: Place) -> str:
    """Without the folders, which are nobody else's matter."""
    return f"{PurePath(place.path).name}:{place.line}"


def _is_long(completion: str) -> bool:
    return len(_normal(completion)) > _SHORT_CHARACTERS


def _digest(text: str, key: bytes = b"") -> bytes:
    return blake2b(_normal(text).encode(), digest_size=_DIGEST_BYTES, key=key).digest()


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
