"""Random numbers in [0, 1) as a function of seed and position, without a generator's state."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


DRAW, XTC_COIN = 1, 2  # the purposes of numbers


def uniform(seed: int, position: int, purpose: int = DRAW) -> float:
    """Return a number with 53 random bits.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) used
    as a counter-based generator: seed and purpose select the stream, the position the number in it.
    """
    start = _mix((seed + purpose * _GOLDEN) & _MASK)
    return (_mix((start + (position + 1) * _GOLDEN) & _MASK) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
