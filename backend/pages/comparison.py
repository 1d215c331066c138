"""Several jobs side by side: the columns, and where each text diverges from the first.

Pure: no request, no database. ``divergence.js`` follows the same rules; the cases in
``tests/unit/web`` are run on both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textmill.backend.pages.formats import parameter_summary
from textmill.backend.pages.job_status import has_ended
from textmill.backend.pages.phrases import Phrase
from textmill.backend.response_models import JobView, RunView

MAX_MARKED_CHARACTERS = 24  # of the first word that differs
# Not \s, which is a different set of characters in JavaScript.
_FIRST_WORD = re.compile(r"[ \t\r\n]*[^ \t\r\n]+")
_LAST_WORD = re.compile(r"[^ \t\r\n]*\Z")
_SPACE = re.compile(r"[ \t\r\n]")


@dataclass(frozen=True, slots=True)
class Divergence:
    """A text in three parts, and a note about the divergence.

    Attributes:
        same: the part before the first word that differs.
        mark: that word, or its beginning.
        rest: the part after it.
        note: a phrase; empty if there is nothing to say yet.
    """

    same: str
    mark: str = ""
    rest: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """A job in a column, and how its text diverges from the reference."""

    job: JobView
    divergence: Divergence


@dataclass(frozen=True, slots=True)
class Column:
    """The samples of one variant.

    Attributes:
        title: the strategy, and the model where the columns have several models.
        summary: the parameters.
        model: the model, unless it is in the title.
        prompt: the prompt of the first sample.
        samples: in order.
    """

    title: str
    summary: str
    model: str | None
    prompt: str
    samples: tuple[Sample, ...]


def columns_of(
    jobs: Sequence[JobView], titles: Mapping[str, str], *, by_variant: bool
) -> list[Column]:
    """Arrange jobs in columns.

    Args:
        jobs: in order; the first one is the reference for the others.
        titles: the strategies' titles by their names.
        by_variant: one column for each variant of a run; otherwise one for each job.
    """
    groups: dict[Any, list[JobView]] = {}
    for job in jobs:
        variant = job.get("variant_index")
        key = variant if by_variant and variant is not None else job["id"]
        groups.setdefault(key, []).append(job)
    has_models = len({job["model"] for job in jobs}) > 1
    columns: list[Column] = []
    for group in groups.values():
        first = group[0]
        strategy = titles.get(first["strategy"], first["strategy"])
        reference = jobs[0] if columns else None
        reference_title = columns[0].title if columns else ""
        columns.append(
            Column(
                title=f"{strategy}, {first['model']}" if has_models else strategy,
                summary=parameter_summary(first["strategy"], first["parameters"]),
                model=None if has_models else first["model"],
                prompt=first["prompt"],
                samples=tuple(
                    Sample(job, divergence(job, reference, reference_title)) for job in group
                ),
            )
        )
    return columns


def divergence(job: JobView, reference: JobView | None, title: str) -> Divergence:
    """Find where the text of a job diverges from that of the reference, named by ``title``."""
    text = job["text"]
    if reference is None or not text:
        return Divergence(text)
    other = reference["text"]
    length = _common_length(text, other)
    if length < min(len(text), len(other)) or (length < len(text) and has_ended(reference)):
        start = _word_start(text, other, length)
        found = _FIRST_WORD.match(text, start)
        end = min(found.end() if found else len(text), length + MAX_MARKED_CHARACTERS)
        note = Phrase.DIFFERS.format(title=title, place=_place(start))
        return Divergence(text[:start], text[start:end], text[end:], note)
    if not has_ended(job) or not has_ended(reference):
        return Divergence(text)
    if length < len(other):
        note = Phrase.ENDS_BEFORE.format(title=title, place=_place(length))
        return Divergence(text, note=note)
    return Divergence(text, note=Phrase.SAME_TEXT.format(title=title))


def _word_start(text: str, other: str, length: int) -> int:
    """Return the start of the word in which the texts diverge.

    That is ``length``, the number of equal characters, if they diverge between two words, and in
    scripts without spaces, which have no start of a word nearby.
    """
    next_characters = text[length : length + 1], other[length : length + 1]
    if all(not character or _SPACE.match(character) for character in next_characters):
        return length
    tail = text[max(0, length - MAX_MARKED_CHARACTERS) : length]
    found = _LAST_WORD.search(tail)
    size = len(found[0]) if found else 0
    return length if size == MAX_MARKED_CHARACTERS else length - size


def _place(num_characters: int) -> str:
    if not num_characters:
        return Phrase.FROM_FIRST_WORD
    if num_characters == 1:
        return Phrase.AFTER_ONE_CHARACTER
    return Phrase.AFTER_CHARACTERS.format(count=num_characters)


def _common_length(one: str, other: str) -> int:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


def run_request(run: RunView) -> dict[str, Any]:
    """Return the body that repeats a run with new seeds."""
    variants: dict[Any, dict[str, Any]] = {}
    for job in run["jobs"]:
        key = job.get("variant_index")
        if key in variants:
            variants[key]["samples"] += 1
            continue
        own = {name: value for name, value in job["parameters"].items() if name != "seed"}
        variants[key] = {"strategy": job["strategy"], "model": job["model"], "samples": 1} | own
        if job.get("trace"):
            variants[key]["trace"] = True
    return {"prompt": run["prompt"], "variants": list(variants.values())}
