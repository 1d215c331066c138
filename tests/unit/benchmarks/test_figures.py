"""The arithmetic behind the figures, without a process."""

from __future__ import annotations

import pytest

from benchmarks.figures import (
    MIN_SAMPLES_FOR_P99,
    Section,
    percentile,
    ratio_of_medians,
    readable,
    table,
)


@pytest.mark.parametrize(
    ("samples", "percent", "wanted"),
    [
        ([5.0], 99, 5.0),
        (list(range(1, 101)), 99, 99),
        (list(range(1, 101)), 50, 50),
        ([3.0, 1.0, 2.0], 100, 3.0),
        ([3.0, 1.0, 2.0], 0, 1.0),
    ],
)
def test_a_percentile_is_a_value_that_was_measured(
    samples: list[float], percent: float, wanted: float
) -> None:
    assert percentile(samples, percent) == wanted


def test_a_ratio_compares_medians_so_that_one_slow_sample_counts_little() -> None:
    assert ratio_of_medians([2.0, 2.0, 90.0], [1.0, 1.0, 1.0]) == 2.0


def test_few_samples_have_no_p99() -> None:
    section = Section("x", "something")
    section.add("few", "ms", [1.0] * (MIN_SAMPLES_FOR_P99 - 1))
    section.add("many", "ms", [1.0] * MIN_SAMPLES_FOR_P99)
    assert [row.p99 for row in section.rows] == [None, 1.0]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.01234, "0.0123"), (4.5, "4.50"), (123.4, "123"), (1e4, "10000")],
)
def test_numbers_are_shown_with_three_digits(value: float, shown: str) -> None:
    assert readable(value) == shown


def test_a_table_names_section_conditions_rows_and_goals() -> None:
    section = Section("demo", "what is measured", ["on a quiet machine"])
    section.add("first", "ms", [1.5, 2.5], "≤ 10 ms")
    lines = table(section).splitlines()
    assert lines[0] == "== demo: what is measured"
    assert lines[1].strip() == "on a quiet machine"
    assert lines[-1].split() == ["first", "2.00", "ms", "2", "≤", "10", "ms"]
