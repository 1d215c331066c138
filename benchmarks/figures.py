"""Figures: makes rows of samples, and a table and JSON of rows.

Knows nothing of what is measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of a section.

    Attributes:
        name: what was measured, and in which variant.
        unit: of ``median`` and ``p99``.
        median: of the samples, or the only value.
        p99: the value that 99 of 100 samples do not exceed; ``None`` for fewer than 20 samples,
            of which it would be the largest.
        num_samples: number of samples.
        goal: the goal as text, as in docs/log.md; empty if there is none.
    """

    name: str
    unit: str
    median: float
    p99: float | None
    num_samples: int
    goal: str = ""


@dataclass(slots=True)
class Section:
    """The results of one section.

    Attributes:
        name: as on the command line.
        what: what is measured, as one sentence.
        conditions: the conditions, one sentence each.
        rows: the figures.
    """

    name: str
    what: str
    conditions: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def add(self, name: str, unit: str, samples: Sequence[float], goal: str = "") -> None:
        """Add the median and, if there are enough samples, the 99th percentile."""
        p99 = percentile(samples, 99) if len(samples) >= MIN_SAMPLES_FOR_P99 else None
        self.rows.append(Row(name, unit, statistics.median(samples), p99, len(samples), goal))

    def as_json(self) -> dict[str, object]:
        """The section as plain JSON."""
        return asdict(self)


MIN_SAMPLES_FOR_P99 = 20


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile, which is one of the samples and never interpolated."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def ratio_of_medians(first: Sequence[float], second: Sequence[float]) -> float:
    """How many times larger the median of ``first`` is than that of ``second``."""
    return statistics.median(first) / statistics.median(second)


def table(section: Section) -> str:
    """A section as lines of text: its title, its conditions, its rows in columns."""
    head = ("", "median", "p99", "unit", "n", "goal")
    cells = [head, *(_cells(row) for row in section.rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = [f"== {section.name}: {section.what}"]
    lines += [f"   {condition}" for condition in section.conditions]
    for line in cells:
        name, *rest = line
        shown = [f"{name:<{widths[0]}}"]
        shown += [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append(("   " + "  ".join(shown)).rstrip())
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    p99 = "" if row.p99 is None else readable(row.p99)
    return (row.name, readable(row.median), p99, row.unit, str(row.num_samples), row.goal)


def readable(value: float) -> str:
    """Three significant digits below a thousand, whole numbers above."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
