"""The texts that the harness asks for: a fixed set, so that every text is known beforehand."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

MARKER = "Zq7marked"  # in every prompt; no log may contain it
POISON = "poisonous"  # in the prompt that kills its worker
NUM_BODIES = 40
SHORT_TOKENS, LONG_TOKENS = 120, 600
BAIT_TOKENS = 1_800  # long enough to be caught in the middle
NUM_BAITS = 2


@dataclass(frozen=True, slots=True)
class Body:
    """One request; the same number always gives the same text."""

    number: int
    num_tokens: int
    word: str = "plain"

    @property
    def prompt(self) -> str:
        return f"{self.number} {self.word} {MARKER}: The quick brown fox"

    @property
    def name(self) -> str:
        """What the text depends on, as the journal says it."""
        return f"{self.word}-{self.number}-{self.num_tokens}"

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "strategy": "sampling",
            "seed": self.number,
            "max_new_tokens": self.num_tokens,
        }


def usual_bodies(count: int = NUM_BODIES) -> list[Body]:
    """What the load is made of: from short to long, in an order that is always the same."""
    lengths = random.Random(12)
    return [Body(n, lengths.randint(SHORT_TOKENS, LONG_TOKENS)) for n in range(count)]


def bait(number: int = 0) -> Body:
    """A long text that a fault may interrupt for certain."""
    return Body(1000 + number, BAIT_TOKENS, "bait")


def poison(number: int = 0) -> Body:
    """The text that kills its worker where the failpoint says so."""
    return Body(2000 + number, SHORT_TOKENS, POISON)


def known_bodies(count: int = NUM_BODIES) -> list[Body]:
    """All whose texts are computed undisturbed, before the first fault."""
    return [*usual_bodies(count), *(bait(n) for n in range(NUM_BAITS))]
