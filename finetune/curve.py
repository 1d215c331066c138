"""The loss over the steps as a self-contained SVG, for light and dark mode and for screen readers.

The page shows it as an image under a strict content security policy, so it has no script, no
``style`` attribute and no external font. If even its style sheet is blocked, it keeps the light
colours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 72, 56  # margins around the plot
MAX_POINTS = 600  # about one for each pixel of the plot; longer series are averaged
MAX_TICKS = 7
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# The colours of the web pages. Contrast is at least 4.5 for text and 3 for lines.
_STYLE = """\
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
.title { font-size: 16px; font-weight: 600 }
@media (prefers-color-scheme: dark) {
  .ground { fill: #1a1c1e }
  text { fill: #e2e2e6 }
  .grid { stroke: #43474e }
  .axis { stroke: #8d9199 }
  .training { stroke: #a9c7ff }
  .validation { stroke: #ffb77c }
  .point { fill: #ffb77c }
}"""
_LIGHT = {
    "ground": 'class="ground" fill="#ffffff"',
    "grid": 'class="grid" stroke="#e2e2e6"',
    "axis": 'class="axis" stroke="#73777f"',
    "training": 'class="training" fill="none" stroke="#1a5fb4" stroke-width="1.5"',
    "validation": (
        'class="validation" fill="none" stroke="#a04a00" stroke-width="2" stroke-dasharray="6 4"'
    ),
    "point": 'class="point" fill="#a04a00"',
}

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear map from numbers to pixels.

    Attributes:
        ticks: round numbers; the first and the last are the ends of the range.
        start: pixel of the first tick.
        end: pixel of the last tick.
    """

    ticks: tuple[float, ...]
    start: float
    end: float

    def pixel(self, number: float) -> float:
        """The pixel of a number."""
        first, last = self.ticks[0], self.ticks[-1]
        return self.start + (number - first) / (last - first) * (self.end - self.start)


def loss_curve_svg(
    training: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]], title: str
) -> str:
    """Draw the losses of a training.

    Args:
        training: (step, nats per token); long series are averaged over neighbouring steps.
        validation: (step, nats per token) of each validation.
        title: one line.

    Returns:
        A complete SVG document. Losses that are not finite are omitted.
    """
    losses, validation_losses = _finite(training), _finite(validation)
    drawn = _averaged(losses)
    points = [*drawn, *validation_losses]
    across = Axis(_ticks([x for x, _ in points], is_whole=True), LEFT, WIDTH - RIGHT)
    up = Axis(_ticks([y for _, y in points], is_whole=False), HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        f' height="{HEIGHT}" role="img" aria-labelledby="title description">',
        f'<title id="title">{_escaped(title)}</title>',
        f'<desc id="description">{_escaped(_description(losses, validation_losses))}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" {_LIGHT["ground"]}/>',
        _text(LEFT, 28, title, 'class="title" font-weight="600"', size=16),
        *_legend(drawn, validation_losses, is_averaged=len(drawn) < len(losses)),
        *_horizontal_axis(across),
        *_vertical_axis(up),
        *_line(drawn, across, up, "training"),
        *_line(validation_losses, across, up, "validation"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _finite(points: Sequence[tuple[int, float]]) -> list[Point]:
    return sorted((float(x), y) for x, y in points if math.isfinite(y))


def _averaged(points: list[Point]) -> list[Point]:
    """Average neighbouring points, so that at most ``MAX_POINTS`` remain."""
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _ticks(numbers: list[float], *, is_whole: bool) -> tuple[float, ...]:
    """Up to eight round numbers that span all others, at a distance of 1, 2 or 5 times 10^n."""
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), 1.0):
        around = 1.0 if is_whole else max(abs(low) * 0.1, 0.1)
        low, high = max(low - around, 0.0) if is_whole else low - around, high + around
    rough = (high - low) / (MAX_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * (1 - 1e-9))
    step = max(step, 1.0) if is_whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(n * step for n in range(first, max(last, first + 1) + 1))


def _description(training: list[Point], validation: list[Point]) -> str:
    sentences = []
    if training:
        (first, start), (last, end) = training[0], training[-1]
        sentences.append(
            f"Training loss goes from {start:.3f} at step {first:.0f}"
            f" to {end:.3f} at step {last:.0f}."
        )
    if validation:
        step, best = min(validation, key=lambda point: point[1])
        sentences.append(
            f"Validation loss goes from {validation[0][1]:.3f} to {validation[-1][1]:.3f};"
            f" it is lowest, {best:.3f}, at step {step:.0f}."
        )
    return " ".join(sentences) or "There are no losses to show."


def _legend(training: list[Point], validation: list[Point], *, is_averaged: bool) -> list[str]:
    label = "training, neighbours averaged" if is_averaged else "training"
    parts = []
    x = LEFT
    if training:
        parts += [f'<line x1="{x}" y1="48" x2="{x + 28}" y2="48" {_LIGHT["training"]}/>']
        parts += [_text(x + 36, 52, label)]
        x += 250 if is_averaged else 120
    if validation:
        parts += [f'<line x1="{x}" y1="48" x2="{x + 28}" y2="48" {_LIGHT["validation"]}/>']
        parts += [f'<circle cx="{x + 14}" cy="48" r="3.5" {_LIGHT["point"]}/>']
        parts += [_text(x + 36, 52, "validation")]
    return parts


def _horizontal_axis(axis: Axis) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = [f'<path d="M{LEFT} {bottom}H{WIDTH - RIGHT}" {_LIGHT["axis"]}/>']
    for tick in axis.ticks:
        x = axis.pixel(tick)
        parts.append(f'<path d="M{x:.1f} {bottom}v5" {_LIGHT["axis"]}/>')
        parts.append(_text(x, bottom + 20, f"{tick:,.0f}", 'text-anchor="middle"'))
    middle = (axis.start + axis.end) / 2
    return [*parts, _text(middle, HEIGHT - 12, "step", 'text-anchor="middle"')]


def _vertical_axis(axis: Axis) -> list[str]:
    step = axis.ticks[1] - axis.ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    parts = []
    for tick in axis.ticks:
        y = axis.pixel(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" {_LIGHT["grid"]}/>')
        parts.append(_text(LEFT - 8, y + 4, f"{tick:.{digits}f}", 'text-anchor="end"'))
    middle = (axis.start + axis.end) / 2
    turned = f'text-anchor="middle" transform="rotate(-90 16 {middle:.1f})"'
    return [*parts, _text(16, middle, "loss, nats per token", turned)]


def _line(points: list[Point], across: Axis, up: Axis, kind: str) -> list[str]:
    """A line through the points, with a dot at each validation loss or at a single point."""
    pixels = [(across.pixel(x), up.pixel(y)) for x, y in points]
    parts = []
    if len(pixels) > 1:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels)
        parts.append(f'<path d="M{path}" stroke-linejoin="round" {_LIGHT[kind]}/>')
    if kind == "validation":
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" {_LIGHT["point"]}/>' for x, y in pixels
        ]
    elif len(pixels) == 1:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" {_LIGHT[kind]}/>' for x, y in pixels]
    return parts


def _text(x: float, y: float, text: str, attributes: str = "", size: int = 13) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-family="sans-serif" font-size="{size}"'
        f' fill="#1a1c1e" {attributes}>{_escaped(text)}</text>'
    )


def _escaped(text: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", text))
