"""Formats numbers, times and texts for the pages. Pure: no request, no database."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from markupsafe import Markup, escape

from textmill.backend.pages.phrases import DURATION_UNITS, Phrase
from textmill.core.strategies import STRATEGIES_BY_NAME

MAX_TITLE_CHARACTERS = 120
_SHORT_NAMES = {
    "top_k": "k",
    "top_p": "p",
    "min_p": "min-p",
    "typical_p": "mass",
    "num_beams": "beams",
}
_NEUTRAL: dict[str, Any] = {"repetition_penalty": 1}  # values without effect are not shown
_HIDDEN = ("seed", "stop", "max_new_tokens", "min_length")
_MINUTE, _HOUR = 60, 3600


def exactly(text: str) -> Markup:
    """Escape a text so that a browser reads back the same: a bare CR would become a line feed."""
    return escape(text).replace("\r", Markup("&#13;"))


def fixed(value: float, digits: int) -> str:
    """Format a number with a number of decimals, rounded as JavaScript's ``toFixed`` does.

    Python rounds 115.25 to 115.2 and JavaScript to 115.3; a page and its script must agree.
    """
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def compact_number(value: float | int | None) -> str:
    """Format a large number: ``135000000`` is ``135 million``."""
    if value is None:
        return Phrase.UNKNOWN
    for size, word in ((1_000_000_000, "billion"), (1_000_000, "million"), (1_000, "thousand")):
        if value >= size * 0.9995:
            scaled = value / size
            digits = 0 if scaled >= 99.95 else 1
            text = f"{scaled:.{digits}f}"
            return f"{text.removesuffix('.0')} {word}"
    return f"{value:g}"


def short_duration(seconds: float | None) -> str:
    """Format the duration of a wait: ``40 ms``, ``2.4 s``, ``3 min``."""
    if seconds is None:
        return Phrase.UNKNOWN
    if seconds < 0.9995:
        return f"{fixed(seconds * 1000, 0)} ms"
    if seconds < 99.95:
        return f"{fixed(seconds, 1)} s"
    return f"{fixed(seconds / 60, 0)} min"


def rate(tokens_per_second: float) -> str:
    """Format a rate that changes while it is shown: ``4.2 tokens/s``, ``12 tokens/s``."""
    return Phrase.RATE.format(rate=fixed(tokens_per_second, 1 if tokens_per_second < 10 else 0))


def ago(moment: str | None, now: datetime | None = None) -> str:
    """Format an instant relative to now: ``just now``, ``5 seconds ago``, ``2 days ago``."""
    if moment is None:
        return "never"
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds()
    if seconds < 2:
        return Phrase.JUST_NOW
    size, unit = next(entry for entry in DURATION_UNITS if seconds >= entry[0])
    count = int(seconds // size)
    return (Phrase.ONE_AGO if count == 1 else Phrase.MANY_AGO).format(count=count, unit=unit)


def parameter_summary(strategy: str, parameters: Mapping[str, Any]) -> str:
    """Format the parameters that tell a job from others: ``temperature 0.5 · k 10``."""
    parts = []
    neutral = neutral_values(strategy)
    for name, value in parameters.items():
        if name in _HIDDEN or value is None or value == [] or neutral.get(name) == value:
            continue
        if isinstance(value, list | dict):
            shown = f"({len(value)})"
        else:
            shown = f"{value:g}" if isinstance(value, int | float) else str(value)
        parts.append(f"{_SHORT_NAMES.get(name, name.replace('_', ' '))} {shown}")
    return " · ".join(parts)


def neutral_values(strategy: str) -> Mapping[str, Any]:
    """The values without effect: all defaults of the strategy custom."""
    return STRATEGIES_BY_NAME["custom"].defaults() if strategy == "custom" else _NEUTRAL


def first_line(text: str) -> str:
    """Return the first line that is not blank, shortened to ``MAX_TITLE_CHARACTERS``."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if len(line) <= MAX_TITLE_CHARACTERS:
        return line
    return line[:MAX_TITLE_CHARACTERS].rstrip() + "…"
