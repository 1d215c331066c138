"""DRY, a penalty for tokens that would continue a repetition of the text.

p-e-w, "DRY: a modern repetition penalty that reliably prevents looping" (text-generation-webui,
pull request 5677, 2024). The lengths of repetitions are the Z-function of the text read backwards,
so that the time is proportional to the text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from textmill.core.strategies import DecodingParameters

MAX_DRY_TOKENS = 50  # longer repetitions count as so long, or the penalty would overflow


def repetition_penalties(
    ids: Sequence[int], breakers: Collection[int], parameters: DecodingParameters
) -> dict[int, float]:
    """The penalties of the tokens that would continue a repetition.

    Args:
        ids: the text.
        breakers: tokens that no repetition continues across.
        parameters: whose fields ``dry_…`` apply.
    """
    backwards = list(reversed(ids[-parameters.dry_range :] if parameters.dry_range else ids))
    limit = _num_before(backwards[:MAX_DRY_TOKENS], breakers)
    allowed = parameters.dry_allowed_length
    if limit < allowed:
        return {}
    longest: dict[int, int] = {}
    for place, matched in enumerate(_matches(backwards)[1:], 1):
        length, following = min(matched, limit), backwards[place - 1]
        if length >= allowed and following not in breakers:
            longest[following] = max(length, longest.get(following, 0))
    penalties = {}
    for token, length in longest.items():
        penalty = parameters.dry_multiplier
        for _ in range(length - allowed):  # as the kernels multiply, so that the bits are the same
            penalty *= parameters.dry_base
        penalties[token] = penalty
    return penalties


def _num_before(ids: Sequence[int], breakers: Collection[int]) -> int:
    return next((place for place, token in enumerate(ids) if token in breakers), len(ids))


def _matches(ids: Sequence[int]) -> list[int]:
    """The Z-function: at each place, how many tokens from there equal the first ones."""
    lengths = [len(ids)] * min(1, len(ids))
    left = right = 0
    for place in range(1, len(ids)):
        length = min(right - place, lengths[place - left]) if place < right else 0
        while place + length < len(ids) and ids[length] == ids[place + length]:
            length += 1
        if place + length > right:
            left, right = place, place + length
        lengths.append(length)
    return lengths
