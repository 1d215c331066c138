"""The figures of a fine-tuned model and its base: titles, digits, directions and changes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.finetunings import finetune_document
from textmill.core.catalog.figures import ComparedFigure, compare_figures, duration_text


def scores(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = finetune_document()["metrics"]["before"] | changes
    return found


def compared(before: dict[str, Any], after: dict[str, Any]) -> dict[str, ComparedFigure]:
    return {figure.title: figure for figure in compare_figures(before, after)}


def test_every_figure_has_its_digits_and_its_direction() -> None:
    shown = [(f.title, f.note, f.before) for f in compare_figures(scores(), scores())]
    assert shown == [
        ("Bits per byte", "lower is better", "0.8656"),
        ("Perplexity", "lower is better", "20.09"),
        ("ROUGE-1", "higher is better", "25.00"),
        ("ROUGE-2", "higher is better", "5.00"),
        ("ROUGE-L", "higher is better", "20.00"),
        ("Distinct-1", "", "25.0\xa0%"),
        ("Distinct-2", "", "50.0\xa0%"),
        ("Distinct-3", "", "75.0\xa0%"),
        ("Memorised 8-grams", "held-out text itself: 1.70\xa0%", "2.10\xa0%"),
    ]


def test_a_change_is_the_difference_of_the_numbers_as_displayed() -> None:
    before = scores(bits_per_byte=0.86564, perplexity=1_234.5)
    after = scores(bits_per_byte=0.72126, perplexity=1_234.504)
    found = compared(before, after)
    assert found["Bits per byte"].change == "−0.1443"  # not −0.1444, that of all digits
    assert (found["Perplexity"].before, found["Perplexity"].change) == ("1,234.50", "±0")


def test_percentages_change_by_points() -> None:
    after = scores(texts=scores()["texts"] | {"memorised": 0.024})
    assert compared(scores(), after)["Memorised 8-grams"].change == "+0.30\xa0points"


def test_a_model_without_completions_has_only_the_figures_of_its_loss() -> None:
    assert list(compared(scores(), scores(texts=None))) == ["Bits per byte", "Perplexity"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119.4, "119 s"), (120, "2 min"), (7199, "120 min"), (11_520, "3.2 h")],
)
def test_durations_are_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
