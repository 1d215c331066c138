"""Words and cuts for the pages that list and compare. Pure: no request, no database."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from markupsafe import Markup, escape

from textmill.core.statuses import FINAL_STATUSES

Document = dict[str, Any]
MAX_MARKED_CHARACTERS = 24  # of the first word that differs
MAX_TITLE_CHARACTERS = 120
_SHORT = {"top_k": "k", "top_p": "p", "min_p": "min-p", "typical_p": "mass"}
_SHORT["num_beams"] = "beams"
_NEUTRAL = {"repetition_penalty": 1}  # says nothing where it is so
_UNSAID = ("seed", "stop", "max_new_tokens", "min_length")
# The same in run.js; no \s, which is not the same set there.
_FIRST_WORD = re.compile(r"[ \t\r\n]*[^ \t\r\n]+")
_LAST_WORD = re.compile(r"[^ \t\r\n]*\Z")
_SPACE = re.compile(r"[ \t\r\n]")


def has_ended(job: Document) -> bool:
    """Whether a job will never change again."""
    return job["status"] in FINAL_STATUSES


def is_restarted(job: Document) -> bool:
    """Whether a worker began this text, went away, and the text is to be made once more."""
    num_ended = job["attempt"] - (job["status"] == "running")
    return not has_ended(job) and num_ended > 0


def exactly(text: str) -> Markup:
    """Escaped text that a browser reads back as it is: a bare CR would become a line feed."""
    return escape(text).replace("\r", Markup("&#13;"))


def fixed(value: float, digits: int) -> str:
    """A number with so many decimals, rounded as JavaScript's ``toFixed`` rounds it.

    Python rounds 115.25 to 115.2 and JavaScript to 115.3; a page and its script must agree.
    """
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def number_in_words(value: float | int | None) -> str:
    """``135000000`` is ``135 million``."""
    if value is None:
        return "–"
    for size, word in ((1_000_000_000, "billion"), (1_000_000, "million"), (1_000, "thousand")):
        if value >= size * 0.9995:
            scaled = value / size
            digits = 0 if scaled >= 99.95 else 1
            text = f"{scaled:.{digits}f}"
            return f"{text.removesuffix('.0')} {word}"
    return f"{value:g}"


def seconds_in_words(value: float | None) -> str:
    """A duration as short as it is exact: ``40 ms``, ``2.4 s``, ``3 min``."""
    if value is None:
        return "–"
    if value < 0.9995:
        return f"{fixed(value * 1000, 0)} ms"
    if value < 99.95:
        return f"{fixed(value, 1)} s"
    return f"{fixed(value / 60, 0)} min"


def ago(moment: str | None, now: datetime | None = None) -> str:
    """An instant in words: ``just now``, ``5 seconds ago``, ``2 days ago``."""
    if moment is None:
        return "never"
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds()
    if seconds < 2:
        return "just now"
    for size, word in ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {word}{'' if count == 1 else 's'} ago"
    return "just now"


def parameters_in_words(parameters: Mapping[str, Any]) -> str:
    """What sets a job apart from others of its strategy: ``temperature 0.5 · k 10``."""
    parts = []
    for name, value in parameters.items():
        if name in _UNSAID or value is None or value == [] or _NEUTRAL.get(name) == value:
            continue
        shown = f"{value:g}" if isinstance(value, int | float) else str(value)
        parts.append(f"{_SHORT.get(name, name.replace('_', ' '))} {shown}")
    return " · ".join(parts)


def first_line(text: str) -> str:
    """The first line that says something, cut where it is long."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if len(line) <= MAX_TITLE_CHARACTERS:
        return line
    return line[:MAX_TITLE_CHARACTERS].rstrip() + "…"


def columns_of(
    jobs: Sequence[Document], titles: Mapping[str, str], *, by_variant: bool
) -> list[Document]:
    """The jobs side by side: a column a variant, or a column a job where they were chosen."""
    groups: dict[Any, list[Document]] = {}
    for job in jobs:
        variant = job.get("variant_index")
        key = variant if by_variant and variant is not None else job["id"]
        groups.setdefault(key, []).append(job)
    has_models = len({job["model"] for job in jobs}) > 1
    columns = []
    for group in groups.values():
        first = group[0]
        strategy = titles.get(first["strategy"], first["strategy"])
        columns.append(
            {
                "title": f"{strategy}, {first['model']}" if has_models else strategy,
                "words": parameters_in_words(first["parameters"]),
                "model": None if has_models else first["model"],  # or in the title
                "prompt": first["prompt"],
                "samples": [{"job": job} for job in group],
            }
        )
    if columns:
        _mark(columns)
    return columns


def _mark(columns: Sequence[Document]) -> None:
    reference = columns[0]["samples"][0]["job"]
    for index, column in enumerate(columns):
        for sample in column["samples"]:
            sample |= divergence(
                sample["job"], None if index == 0 else reference, columns[0]["title"]
            )


def divergence(job: Document, reference: Document | None, title: str) -> Document:
    """Where a text leaves another: what is the same, the first other word, the rest, a note."""
    text = job["text"]
    plain = {"same": text, "mark": "", "rest": "", "note": ""}
    if reference is None or not text:
        return plain
    other = reference["text"]
    length = _common_length(text, other)
    if length < min(len(text), len(other)) or (length < len(text) and has_ended(reference)):
        start = _word_start(text, other, length)
        found = _FIRST_WORD.match(text, start)
        end = min(found.end() if found else len(text), length + MAX_MARKED_CHARACTERS)
        return {
            "same": text[:start],
            "mark": text[start:end],
            "rest": text[end:],
            "note": f"differs from {title} {_after(start)}",
        }
    if length < len(other) and has_ended(job) and has_ended(reference):
        return plain | {"note": f"ends {_after(length)}, where {title} goes on"}
    if length == len(other) == len(text) and has_ended(job) and has_ended(reference):
        return plain | {"note": f"the same text as {title}"}
    return plain


def _word_start(text: str, other: str, length: int) -> int:
    """Where the word begins inside which the texts part; ``length`` where they part between words.

    Scripts that write no spaces have no such place near by: there it is the character.
    """
    parted = text[length : length + 1], other[length : length + 1]
    if all(not end or _SPACE.match(end) for end in parted):
        return length
    tail = text[max(0, length - MAX_MARKED_CHARACTERS) : length]
    found = _LAST_WORD.search(tail)
    size = len(found[0]) if found else 0
    return length if size == MAX_MARKED_CHARACTERS else length - size


def _after(length: int) -> str:
    if not length:
        return "from the first word"
    return f"after {length} character{'' if length == 1 else 's'}"


def _common_length(one: str, other: str) -> int:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


def request_of_run(run: Document) -> Document:
    """The body that makes a run again, with new seeds."""
    variants: dict[Any, Document] = {}
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


def slot_marks(num_slots: int, num_active: int) -> list[Document]:
    """Squares for a worker's slots, at most 64 drawn: place and whether used."""
    return [{"x": i * 14 + 1, "used": i < num_active} for i in range(min(num_slots, 64))]


def ids_of(values: Iterable[str], limit: int) -> list[str]:
    """Ids as sent, each once, no more than a page can take."""
    return list(dict.fromkeys(value for value in values if value))[:limit]
