"""Every phrase that both the pages and the scripts show.

``backend.pages.script_contract`` writes them to ``contract.js``, so that a page reads the same
before and after a script updates it. Values in braces are filled in.
"""

from __future__ import annotations

from enum import StrEnum

from textmill.backend.response_models import FinishReason
from textmill.core.statuses import Status

STATUS_LABELS: dict[Status, str] = {
    "queued": "Queued",
    "running": "Running",
    "succeeded": "Finished",
    "failed": "Failed",
    "canceled": "Canceled",
}
FINISH_SENTENCES: dict[FinishReason, str] = {
    "stop": "The text is complete",
    "length": "The requested length was reached",
    "canceled": "Canceled; the text generated so far was kept",
    "deadline": "The deadline passed",
    "error": "The job failed with an error",
}
DURATION_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


class Phrase(StrEnum):
    """A phrase, or a template for ``str.format``."""

    # The state of one job.
    NEXT_IN_QUEUE = "Next in the queue"
    NUMBER_IN_QUEUE = "Number {position} in the queue"
    IN_QUEUE = "In the queue"
    QUEUE_ESTIMATE = "{place}; about {seconds} s, estimated from recent jobs of this model"
    GENERATING = "Generating the text"
    CANCELING = "Canceling"
    DELETED = "This job was deleted"
    DELETED_LABEL = "Deleted"
    TOKENS = "{count}/{length} tokens"
    RATE = "{rate} tokens/s"
    SEED = "seed {seed}"

    # Several jobs.
    ALL_ENDED = "All {total} jobs have ended"
    SOME_ENDED = "{ended} of {total} jobs have ended"

    # Where the text of one job differs from that of another.
    DIFFERS = "differs from {title} {place}"
    ENDS_BEFORE = "ends {place}, where {title} continues"
    SAME_TEXT = "the same text as {title}"
    FROM_FIRST_WORD = "from the first word"
    AFTER_ONE_CHARACTER = "after 1 character"
    AFTER_CHARACTERS = "after {count} characters"

    # The queue and its workers.
    NOBODY_AHEAD = "No jobs are waiting"
    AHEAD = "{count} ahead"
    AHEAD_FOR = "{count} ahead, about {span} s"
    SLOTS_USED = "{active} of {slots} slots used"

    # Times.
    JUST_NOW = "just now"
    ONE_AGO = "1 {unit} ago"
    MANY_AGO = "{count} {unit}s ago"
    UNKNOWN = "–"
