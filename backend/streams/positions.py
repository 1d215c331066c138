"""Positions in a job's text, and the event ids that carry them.

A position is an attempt and a number of characters. It means the same in the Redis stream and in
the database row, so a reader can resume from either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from textmill.core.errors import FieldError, ValidationFailed
from textmill.core.jobs.records import JobRecord

_POSITION = re.compile(r"(\d{1,9})-(\d{1,9})(-done)?", re.ASCII)
_RUN_PART = re.compile(r"(\d{1,19}):(\d{1,9}-\d{1,9}(?:-done)?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """How much of an attempt's text a reader has.

    Attributes:
        attempt: the attempt; 0 before the first claim.
        num_characters: characters of that attempt's text, as Unicode code points.
        is_done: whether the reader got ``done``. It is a field of its own because a lost worker may
            have streamed more text than the row contains: a number beyond the end of the text
            would be ambiguous.
    """

    attempt: int = 0
    num_characters: int = 0
    is_done: bool = False

    def __str__(self) -> str:
        return f"{self.attempt}-{self.num_characters}" + ("-done" if self.is_done else "")


# The position of a reader whose event id is invalid. The reader may have any text, so it gets
# ``reset`` first.
UNKNOWN_POSITION = StreamPosition(attempt=-1, num_characters=1)


def end_position(job: JobRecord) -> StreamPosition:
    """Return the position of a reader that has all events of a final job."""
    return StreamPosition(job.attempt, len(job.text), is_done=True)


def has_everything(job: JobRecord, position: StreamPosition) -> bool:
    """Return whether a reader at this position already got ``done``."""
    return job.is_final and position == end_position(job)


def parse_event_id(text: str) -> StreamPosition:
    """Parse the id of an event of one job.

    Raises:
        ValidationFailed: the text is not such an id.
    """
    match = _POSITION.fullmatch(text.strip())
    if match is None:
        raise ValidationFailed([FieldError("after", "must be the id of an event of this stream")])
    return StreamPosition(int(match[1]), int(match[2]), match[3] is not None)


def parse_run_event_id(text: str) -> dict[int, StreamPosition]:
    """Parse the id of an event of a run; returns positions by the jobs' numbers.

    A job that is missing has the position at its start. A job that was deleted may be included.

    Raises:
        ValidationFailed: the text is not such an id.
    """
    found = [_RUN_PART.fullmatch(part.strip()) for part in text.split(",")]
    if not all(found):
        raise ValidationFailed([FieldError("after", "must be the id of an event of this stream")])
    return {int(match[1]): parse_event_id(match[2]) for match in found if match}


def run_event_id(positions: Mapping[int, StreamPosition]) -> str:
    """Return the event id for positions in the jobs of a run, by the jobs' numbers."""
    return ",".join(f"{number}:{position}" for number, position in positions.items())
