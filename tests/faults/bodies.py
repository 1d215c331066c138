"""The requests that the harness submits: a fixed set, so that every completion is known."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

MARKER = "Zq7marked"  # is in every prompt; no log may contain it
POISON = "poisonous"  # is in the prompt that kills its worker
NUM_BODIES = 40
SHORT_TOKENS, LONG_TOKENS = 120, 600
BAIT_TOKENS = 1_800  # long enough to be interrupted while it is decoded
NUM_BAITS = 2


@dataclass(frozen=True, slots=True)
class Body:
    """One request; the same number always gives the same completion."""

    number: int
    num_tokens: int
    word: str = "plain"

    @property
    def prompt(self) -> str:
        return f"{self.number} {self.word} {MARKER}: The quick brown fox"

    @property
    def name(self) -> str:
        """Identifies the completion in the journal."""
        return f"{self.word}-{self.number}-{self.num_tokens}"

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "strategy": "sampling",
            "seed": self.number,
            "max_new_tokens": self.num_tokens,
        }


def usual_bodies(count: int = NUM_BODIES) -> list[Body]:
    """The bodies of the load, with lengths from short to long in a fixed order."""
    lengths = random.Random(12)
    return [Body(n, lengths.randint(SHORT_TOKENS, LONG_TOKENS)) for n in range(count)]


def bait(number: int = 0) -> Body:
    """A request so long that a fault is certain to interrupt it."""
    return Body(1000 + number, BAIT_TOKENS, "bait")


def poison(number: int = 0) -> Body:
    """The request that kills its worker at the active failpoint."""
    return Body(2000 + number, SHORT_TOKENS, POISON)


def known_bodies(count: int = NUM_BODIES) -> list[Body]:
    """All bodies whose completions are computed before the first fault, without disturbance."""
    return [*usual_bodies(count), *(bait(n) for n in range(NUM_BAITS))]
