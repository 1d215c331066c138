"""What a client may order and keep: tokens per minute and day, waiting jobs, stored bytes.

A price counts the tokens that a request may make the model process: its prompt, and the new tokens
of every beam and sample. It is charged when the job is stored, in the same transaction, whatever is
written in the end. A window of a minute or a day begins with the first request in it.
``core.access.usage`` counts the tokens, and ``core.access.holdings`` the jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textmill.core.access.principals import ADMIN, Principal
from textmill.core.errors import Quota
from textmill.core.settings import Settings

WINDOW_SECONDS = {"minute": 60, "day": 86_400}
ADDRESS_FACTOR = 4  # visitors of one address together: a household, an office behind one address
TRACE_PERCENT = 110  # a trace takes a tenth of a step's time


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of one client; 0 is no limit.

    Attributes:
        tokens_per_minute, tokens_per_day: of all its requests together.
        max_queued: jobs that wait.
        max_active: jobs that wait or run.
        max_stored_bytes: prompts and texts in the database.
    """

    tokens_per_minute: int = 0
    tokens_per_day: int = 0
    max_queued: int = 0
    max_active: int = 0
    max_stored_bytes: int = 0

    def times(self, factor: int) -> Budget:
        """The limits of several clients together."""
        return Budget(
            self.tokens_per_minute * factor,
            self.tokens_per_day * factor,
            self.max_queued * factor,
            self.max_active * factor,
            self.max_stored_bytes * factor,
        )

    def windows(self) -> dict[str, int]:
        """The limits of tokens by the name of their window; see ``WINDOW_SECONDS``."""
        return {"minute": self.tokens_per_minute, "day": self.tokens_per_day}


UNLIMITED = Budget()


@dataclass(frozen=True, slots=True)
class Account:
    """Who is charged for a request.

    Attributes:
        owner_id: the client.
        budget: its limits.
        address_id: a keyed hash of a visitor's address; empty if the address has no limits.
        is_limited: whether it may be blocked, and a part of the queue is kept for others.
    """

    owner_id: str
    budget: Budget = UNLIMITED
    address_id: str = ""
    is_limited: bool = False

    @classmethod
    def of(cls, principal: Principal, settings: Settings) -> Account:
        """The account of a principal; those of the mode ``local`` and of admins have no limits."""
        if not settings.is_open or principal.may(ADMIN):
            return cls(principal.owner_id)
        is_visitor = principal.kind == "visitor"
        budget = Budget(
            settings.visitor_tokens_per_minute if is_visitor else settings.key_tokens_per_minute,
            settings.visitor_tokens_per_day if is_visitor else settings.key_tokens_per_day,
            settings.visitor_max_queued if is_visitor else settings.key_max_queued,
            settings.visitor_max_active if is_visitor else 0,
            settings.visitor_max_stored_bytes if is_visitor else 0,
        )
        if principal.tokens_per_day is not None:
            budget = Budget(budget.tokens_per_minute, principal.tokens_per_day, budget.max_queued)
        address_id = principal.address_id if is_visitor else ""
        return cls(principal.owner_id, budget, address_id, is_limited=True)

    def subjects(self) -> list[tuple[str, Budget]]:
        """The names under which tokens are counted, each with its limits."""
        own = [(self.owner_id, self.budget)]
        if self.address_id:
            own.append((f"address:{self.address_id}", self.budget.times(ADDRESS_FACTOR)))
        return own


def price(num_prompt: int, num_new: int, *, num_beams: int = 1, has_trace: bool = False) -> int:
    """The tokens that one job orders.

    Args:
        num_prompt: tokens of the prompt.
        num_new: the most that it may write.
        num_beams: sequences that a beam search computes at once.
        has_trace: whether every step's probabilities are kept.
    """
    tokens = num_prompt + num_new * num_beams
    return tokens * TRACE_PERCENT // 100 if has_trace else tokens


def refusal(quota: Quota, tokens: int) -> str:
    """Why a request is refused that orders more tokens than a quota has left."""
    whose = "All visitors of your network together" if quota.is_shared else "You"
    if tokens > quota.limit:
        return (
            f"{whose} may order {quota.limit:,} tokens per {quota.window}, and this request alone"
            f" orders {tokens:,}; ask for fewer new tokens, samples or beams."
        )
    return (
        f"{whose} may order {quota.limit:,} tokens per {quota.window}; {quota.left:,} are left and"
        f" this request orders {tokens:,}. Come back {in_words(quota.seconds)}."
    )


def in_words(seconds: int) -> str:
    """A wait as people say it."""
    if seconds < 90:
        return f"in {seconds} seconds"
    if seconds < 90 * 60:
        return f"in {round(seconds / 60)} minutes"
    return f"in {round(seconds / 3600)} hours"


def rate_limit_headers(quotas: Sequence[Quota]) -> dict[str, str]:
    """The RateLimit fields of draft-ietf-httpapi-ratelimit-headers-10."""
    if not quotas:
        return {}
    policy = ", ".join(f'"{q.window}";q={q.limit};w={WINDOW_SECONDS[q.window]}' for q in quotas)
    state = ", ".join(f'"{q.window}";r={q.left};t={q.seconds}' for q in quotas)
    return {"RateLimit-Policy": policy, "RateLimit": state}
