"""The one number behind every draw: in range, even, and different wherever it should be.

The bounds of the statistical tests would be passed by chance with a probability of 1e-6 at most; as
the seeds are fixed, a test that passes once passes always.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textmill.core.strategies import MAX_SEED
from textmill.engine.sampling.uniform import DRAW, XTC_COIN, uniform

FALSE_ALARM = 1e-6
SEEDS = [0, 1, 2, 7, 2**31 - 1, 2**32, 2**62, MAX_SEED - 1, MAX_SEED]


def chi_square_bound(degrees: int) -> float:
    """By Wilson and Hilferty's approximation; for 99 degrees it is within 1% of the exact one."""
    z = NormalDist().inv_cdf(1 - FALSE_ALARM)
    share = 2 / (9 * degrees)
    return degrees * (1 - share + z * math.sqrt(share)) ** 3


def chi_square(numbers: list[float], num_bins: int) -> float:
    counts = [0] * num_bins
    for number in numbers:
        counts[int(number * num_bins)] += 1
    expected = len(numbers) / num_bins
    return sum((count - expected) ** 2 / expected for count in counts)


@settings(deadline=None, derandomize=True, database=None)
@given(st.integers(0, MAX_SEED), st.integers(0, 10**6))
def test_a_number_is_in_the_half_open_range_and_always_the_same(seed: int, position: int) -> None:
    number = uniform(seed, position)
    assert 0.0 <= number < 1.0
    assert number == uniform(seed, position)
    assert (number * 2**53).is_integer()  # every bit that a double has room for, and no rounding


def test_seeds_and_positions_all_give_different_numbers() -> None:
    numbers = [uniform(seed, position) for seed in SEEDS for position in range(1000)]
    assert len(set(numbers)) == len(numbers)
    assert len({uniform(seed, 0) for seed in range(10_000)}) == 10_000


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_along_a_text_are_spread_evenly(seed: int) -> None:
    numbers = [uniform(seed, position) for position in range(20_000)]
    assert chi_square(numbers, 100) < chi_square_bound(99)


@pytest.mark.parametrize("position", [0, 1, 63, 2047])
@pytest.mark.parametrize("stride", [1, 2**32, 2**48])
def test_numbers_of_neighbouring_seeds_are_spread_evenly(position: int, stride: int) -> None:
    """Seeds as in runs: consecutive numbers, one for each sample."""
    numbers = [uniform((i * stride) & MAX_SEED, position) for i in range(10_000)]
    assert chi_square(numbers, 100) < chi_square_bound(99)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_number_tells_nothing_of_the_next(seed: int) -> None:
    numbers = [uniform(seed, position) for position in range(20_000)]
    pairs = [
        (int(one * 10) * 10 + int(other * 10) + 0.5) / 100  # the half keeps it off the bins' edges
        for one, other in zip(numbers[::2], numbers[1::2], strict=True)
    ]
    assert chi_square(pairs, 100) < chi_square_bound(99)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_draw_tells_nothing_of_the_coin_at_the_same_place(seed: int) -> None:
    pairs = [
        (int(uniform(seed, place) * 10) * 10 + int(uniform(seed, place, XTC_COIN) * 10) + 0.5) / 100
        for place in range(20_000)
    ]
    assert chi_square(pairs, 100) < chi_square_bound(99)
    assert uniform(seed, 3) == uniform(seed, 3, DRAW) != uniform(seed, 3, XTC_COIN)


def test_neighbouring_seeds_are_not_correlated() -> None:
    """The mean product of 20000 centred pairs has a standard deviation of 1/12/sqrt(20000)."""
    bound = NormalDist().inv_cdf(1 - FALSE_ALARM / 2) / 12 / math.sqrt(20_000)
    for shift in (0, 1, -1):
        products = [
            (uniform(3, position + 1) - 0.5) * (uniform(4, position + 1 + shift) - 0.5)
            for position in range(20_000)
        ]
        assert abs(sum(products) / len(products)) < bound


def test_the_first_numbers_stay_what_they_were() -> None:
    """Stored jobs are reproduced from their seeds: a change here breaks them."""
    numbers = [uniform(0, 0), uniform(7, 1), uniform(MAX_SEED, 63)]
    assert numbers == [0.6524484863740322, 0.6497043364684557, 0.7007695921182076]
