"""The figures that describe a fine-tuned model beside its base.

The terminal, the model card and the models page all show this list, so titles, digits and
directions are the same everywhere. Takes the figures as ``finetune.json`` has them; knows nothing
of layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_MINUTE, _HOUR = 60, 3600
_NO_BREAK = "\xa0"  # keeps a number and its unit on one line


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure of the base and of the tuned model, formatted for display.

    Attributes:
        title: the figure's name.
        note: which direction is better, or a value to compare with; may be empty.
        before: the base's figure.
        after: the tuned model's figure.
        change: the difference of the two numbers as displayed, or ``±0``.
        is_main: whether a short table includes it.
    """

    title: str
    note: str
    before: str
    after: str
    change: str
    is_main: bool


@dataclass(frozen=True, slots=True)
class _Figure:
    title: str
    keys: tuple[str, ...]  # the path to the number in ``metrics.before`` and ``metrics.after``
    digits: int
    better: Literal["lower", "higher"] | None = None
    scale: int = 1
    is_percentage: bool = False
    is_main: bool = False


_LOSS_FIGURES = (
    _Figure("Bits per byte", ("bits_per_byte",), 4, "lower", is_main=True),
    _Figure("Perplexity", ("perplexity",), 2, "lower", is_main=True),
)
_COMPLETION_FIGURES = (
    _Figure("ROUGE-1", ("texts", "rouge", "rouge1"), 2, "higher", scale=100),
    _Figure("ROUGE-2", ("texts", "rouge", "rouge2"), 2, "higher", scale=100),
    _Figure("ROUGE-L", ("texts", "rouge", "rouge_l"), 2, "higher", scale=100, is_main=True),
    _Figure("Distinct-1", ("texts", "distinct1"), 1, scale=100, is_percentage=True),
    _Figure("Distinct-2", ("texts", "distinct2"), 1, scale=100, is_percentage=True),
    _Figure("Distinct-3", ("texts", "distinct3"), 1, scale=100, is_percentage=True),
)
_MEMORISED = _Figure(
    "Memorised 8-grams", ("texts", "memorised"), 2, scale=100, is_percentage=True, is_main=True
)


def compare_figures(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[ComparedFigure]:
    """Put the figures of a base and of the tuned model side by side.

    Args:
        before: ``metrics.before`` of a ``finetune.json``.
        after: ``metrics.after``.

    Returns:
        The figures in display order; those of completions only if both models generated some.
    """
    compared = [_compare(figure, before, after) for figure in _LOSS_FIGURES]
    if before["texts"] is not None and after["texts"] is not None:
        compared += [_compare(figure, before, after) for figure in _COMPLETION_FIGURES]
        reference = f"held-out text itself: {100 * after['texts']['reference_memorised']:.2f}"
        compared.append(_compare(_MEMORISED, before, after, f"{reference}{_NO_BREAK}%"))
    return compared


def duration_text(seconds: float) -> str:
    """A duration in the unit that fits: ``40 s``, ``35 min``, ``3.2 h``."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.1f} h"


def _compare(
    figure: _Figure, before: Mapping[str, Any], after: Mapping[str, Any], note: str = ""
) -> ComparedFigure:
    digits = figure.digits
    old, new = _number(figure, before), _number(figure, after)
    change = f"{new - old:+,.{digits}f}".replace("-", "−")
    unit, points = (f"{_NO_BREAK}%", f"{_NO_BREAK}points") if figure.is_percentage else ("", "")
    return ComparedFigure(
        title=figure.title,
        note=note or (f"{figure.better} is better" if figure.better else ""),
        before=f"{old:,.{digits}f}{unit}",
        after=f"{new:,.{digits}f}{unit}",
        change="±0" if old == new else f"{change}{points}",
        is_main=figure.is_main,
    )


def _number(figure: _Figure, scores: Mapping[str, Any]) -> float:
    """The number as displayed, so that the change agrees with the two numbers beside it."""
    value: Any = scores
    for key in figure.keys:
        value = value[key]
    return round(figure.scale * float(value), figure.digits)
