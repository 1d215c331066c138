"""The loss curve: well-formed, inside its bounds, with a text description."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest

from textmill.finetune.curve import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    loss_curve_svg,
)

SVG = "{http://www.w3.org/2000/svg}"
TRAINING = [(step, 3 + math.exp(-step / 100)) for step in range(10, 510, 10)]
VALIDATION = [(step, 3.1 + math.exp(-step / 100)) for step in range(0, 501, 100)]


def drawn(
    training: list[tuple[int, float]],
    validation: list[tuple[int, float]],
    title: str = "Loss",
) -> ET.Element:
    return ET.fromstring(loss_curve_svg(training, validation, title))


def points(svg: ET.Element, kind: str) -> list[tuple[float, float]]:
    """The points of a line; its sample in the legend is not a path."""
    paths = [e for e in svg.iter(f"{SVG}path") if e.get("class") == kind]
    numbers = [float(n) for path in paths for n in re.findall(r"-?[\d.]+", path.get("d", ""))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def dots(svg: ET.Element, kind: str) -> list[tuple[float, float]]:
    circles = [e for e in svg.iter(f"{SVG}circle") if e.get("class") == kind]
    return [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in circles]


def texts(svg: ET.Element) -> list[str]:
    return [element.text or "" for element in svg.iter(f"{SVG}text")]


def is_inside(point: tuple[float, float]) -> bool:
    return LEFT <= point[0] <= WIDTH - RIGHT and TOP <= point[1] <= HEIGHT - BOTTOM


def test_every_point_is_inside_the_plot_and_lower_losses_are_lower() -> None:
    svg = drawn(TRAINING, VALIDATION)
    line = points(svg, "training")
    assert len(line) == len(TRAINING)
    assert all(map(is_inside, line))
    assert line == sorted(line)
    assert [y for _, y in line] == sorted(y for _, y in line)
    validation = points(svg, "validation")
    assert len(validation) == len(VALIDATION)
    assert all(map(is_inside, validation))
    assert set(validation) <= set(dots(svg, "point"))


def test_the_position_of_a_loss_agrees_with_the_ticks() -> None:
    svg = drawn([(0, 2.0), (100, 4.0)], [])
    ticks = {
        element.text: float(element.get("y", "")) - 4
        for element in svg.iter(f"{SVG}text")
        if element.get("text-anchor") == "end"
    }
    (_, first), (_, last) = points(svg, "training")
    assert first == pytest.approx(ticks["2.0"])
    assert last == pytest.approx(ticks["4.0"])


def test_ticks_are_round_numbers() -> None:
    shown = texts(drawn([(1, 2.9501), (10_000, 3.04)], []))
    assert {"0", "2,000", "10,000", "2.94", "2.96", "3.04"} <= set(shown)


def test_a_single_point_and_an_empty_series_are_drawn() -> None:
    assert all(map(is_inside, dots(drawn([(1, 3.2)], []), "training")))
    assert len(dots(drawn([(1, 3.2)], []), "training")) == 1
    assert len(points(drawn([(1, 3.2)], [(1, 3.2)]), "validation")) == 0
    svg = drawn([], [])
    assert "training" not in texts(svg)
    assert "no losses" in (svg.findtext(f"{SVG}desc") or "")


@pytest.mark.parametrize("loss", [0.0, -1.0, 1e-12, 1e9])
def test_equal_losses_get_an_axis(loss: float) -> None:
    assert all(map(is_inside, points(drawn([(1, loss), (2, loss)], []), "training")))


def test_losses_that_differ_in_the_last_bit_get_an_axis() -> None:
    line = points(drawn([(1, 3.0), (2, math.nextafter(3.0, 4.0))], []), "training")
    assert all(map(is_inside, line))


def test_losses_that_are_not_finite_are_omitted() -> None:
    svg = loss_curve_svg([(1, 3.0), (2, math.nan), (3, math.inf), (4, 2.0)], [(4, math.nan)], "x")
    assert len(points(ET.fromstring(svg), "training")) == 2
    assert not re.search(r"\b(nan|inf)\b", svg, re.IGNORECASE)


def test_a_long_series_is_averaged_and_the_legend_says_so() -> None:
    svg = drawn([(step, float(step % 2)) for step in range(1, 5001)], [])
    line = points(svg, "training")
    assert 100 < len(line) <= MAX_POINTS
    assert "training, neighbours averaged" in texts(svg)


def test_title_and_description_are_available_to_screen_readers() -> None:
    svg = drawn([(1, 3.5), (20, 2.5)], [(10, 2.75), (20, 2.875)], "Loss of a model")
    assert svg.get("role") == "img"
    named = {element.get("id"): element.text for element in svg if element.get("id")}
    assert set((svg.get("aria-labelledby") or "").split()) == set(named)
    assert named["title"] == "Loss of a model"
    assert named["description"] == (
        "Training loss goes from 3.500 at step 1 to 2.500 at step 20."
        " Validation loss goes from 2.750 to 2.875; it is lowest, 2.750, at step 10."
    )
    assert {"training", "validation", "step", "loss, nats per token"} <= set(texts(svg))


@pytest.mark.parametrize(
    "title", ["</svg><script>alert(1)</script>", 'a & b "c" <d>', "nul \0 \x1b"]
)
def test_a_title_is_escaped(title: str) -> None:
    svg = drawn(TRAINING, [], title)
    assert svg.find(f"{SVG}script") is None
    shown = title.replace("\0", "\ufffd").replace("\x1b", "\ufffd")
    assert svg.findtext(f"{SVG}title") == shown
    assert shown in texts(svg)


def test_a_strict_content_policy_can_block_only_the_dark_colours() -> None:
    text = loss_curve_svg(TRAINING, VALIDATION, "x")
    svg = ET.fromstring(text)
    assert not [e for e in svg.iter() if e.get("style") or e.tag in {f"{SVG}script", f"{SVG}image"}]
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    for element in svg.iter():
        if element.get("class") in {"training", "validation", "grid", "axis"}:
            assert element.get("stroke")
        if element.tag == f"{SVG}text":
            assert element.get("fill")
