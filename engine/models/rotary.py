"""Tables of rotary positions (Su et al., "RoFormer", 2021), the same bits on every processor.

The powers, sines and cosines of libm, of NumPy and of PyTorch differ between processors in the last
bit. Here frequencies are computed in decimal arithmetic, and sines and cosines by sums and products
of doubles, each rounded as IEEE 754 requires.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_DECIMAL = Context(prec=40)
_PI = Decimal("3.141592653589793238462643383279502884197")
# pi / 2 in three parts, of which the first two have 33 bits: their products with integers below
# 2^20 are exact.
_PART_BITS = 33
_TERMS = 10  # of the Taylor series: the first one left out is below 2^-53 for angles up to pi / 4


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions, with Llama 3's scaling where ``factor`` is not 1."""

    theta: float = 10_000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192


def rotary_tables(rope: Rope, context_length: int, head_dim: int) -> tuple[Float32, Float32]:
    """Cosines and sines of each position's angles, each (context_length, head_dim / 2) float32.

    Frequencies and angles are rounded to float32 where transformers rounds them.
    """
    frequencies = _frequencies(rope.theta, head_dim)
    if rope.factor != 1.0:
        frequencies = _scaled(frequencies, rope)
    angles = np.arange(context_length, dtype=np.float32)[:, None] * frequencies
    return cosines_and_sines(angles)


def _frequencies(theta: float, head_dim: int) -> Float32:
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = [_DECIMAL.power(Decimal(theta), Decimal(float(e))) for e in exponents]
    frequencies: Float32 = np.reciprocal(np.array([float(power) for power in powers], np.float32))
    return frequencies


def _scaled(frequencies: Float32, rope: Rope) -> Float32:
    """Llama 3.1's scaling: long waves are stretched, short ones kept, others interpolated."""
    low, high = np.float32(rope.low_freq_factor), np.float32(rope.high_freq_factor)
    turns = np.float32(rope.original_context_length) * frequencies / np.float32(2 * math.pi)
    blend = np.clip((turns - low) / (high - low), np.float32(0), np.float32(1))
    stretched = (np.float32(1) - blend) * frequencies / np.float32(rope.factor)
    result: Float32 = stretched + blend * frequencies
    return result


def cosines_and_sines(angles: Float32) -> tuple[Float32, Float32]:
    """Cosines and sines of angles in radians, of at most 2^20 quarter turns."""
    exact = angles.astype(np.float64)
    quarters = np.rint(exact * (2 / math.pi))
    for part in _half_pi_parts():
        exact = exact - quarters * part
    sine, cosine = _series(exact, 1), _series(exact, 0)
    quadrant = quarters.astype(np.int64) & 3
    is_odd = (quadrant & 1) == 1
    cos = np.where(is_odd, sine, cosine) * np.where((quadrant == 1) | (quadrant == 2), -1.0, 1.0)
    sin = np.where(is_odd, cosine, sine) * np.where(quadrant >= 2, -1.0, 1.0)
    return cos.astype(np.float32), sin.astype(np.float32)


def _half_pi_parts() -> list[float]:
    rest, parts = _PI / 2, []
    for _ in range(2):
        mantissa, exponent = math.frexp(float(rest))
        part = math.ldexp(math.floor(math.ldexp(mantissa, _PART_BITS)), exponent - _PART_BITS)
        parts.append(part)
        rest = _DECIMAL.subtract(rest, Decimal(part))
    return [*parts, float(rest)]


def _series(x: Float64, first_power: int) -> Float64:
    """The Taylor series of sine (1) or cosine (0), by Horner's rule."""
    square = x * x
    total = np.zeros_like(x)
    for term in reversed(range(_TERMS)):
        factor = (-1) ** term / math.factorial(2 * term + first_power)
        total = total * square + factor
    return total * x if first_power else total
