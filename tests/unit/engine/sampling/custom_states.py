"""Sampling states of any strategy, with the tokens that their parameters name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textmill.core.strategies import DecodingParameters
from textmill.engine.sampling.token_records import SamplingState
from textmill.engine.token_rules import rules_for


class NumberEncoder:
    """Encodes the text ``a17`` as the tokens 0 and 17."""

    def encode_part(self, text: str) -> list[int]:
        return [0, int(text[1:])]


def state_of(
    ids: Sequence[int],
    *,
    size: int,
    position: int = 0,
    seed: int = 0,
    breakers: Sequence[int] = (),
    **parameters: Any,
) -> SamplingState:
    """A state; ``breakers`` are token ids, ``size`` is that of the vocabulary."""
    own = DecodingParameters(
        max_new_tokens=99,
        seed=seed,
        dry_sequence_breakers=tuple(map(str, breakers)),
        **{"strategy": "custom"} | parameters,
    )
    return SamplingState(own, list(ids), position, rules_for(own, NumberEncoder(), size))
