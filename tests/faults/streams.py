"""Judges a job's event stream over all its connections."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tests.faults.verdict import StreamReport

_ID = re.compile(r"(\d+)-(\d+)(-done)?")


@dataclass(slots=True)
class StreamJudge:
    """Receives the events of one job in the order of their arrival."""

    job_id: str
    last_id: str | None = None
    text: str = ""
    num_gaps: int = 0
    num_repeats: int = 0
    num_connections: int = 0
    is_ended: bool = False
    is_text_whole: bool = True

    def take(self, event_id: str, name: str, data: dict[str, Any]) -> None:
        """Add one event."""
        if self.is_ended:
            self.num_repeats += 1  # nothing may follow the last event
            return
        self.last_id = event_id
        if name == "reset":
            self.text = ""
        elif name == "token":
            self._take_token(event_id, data["text"])
        elif name == "done":
            self.is_ended = True
            self.is_text_whole = data["text"] == self.text
        elif name == "deleted":
            self.is_ended = True

    def _take_token(self, event_id: str, text: str) -> None:
        match = _ID.fullmatch(event_id)
        end = int(match[2]) if match else -1
        expected = len(self.text) + len(text)
        self.num_gaps += end > expected
        self.num_repeats += end < expected
        self.text += text

    def report(self) -> StreamReport:
        """The report on the stream so far."""
        return StreamReport(
            job_id=self.job_id,
            num_gaps=self.num_gaps,
            num_repeats=self.num_repeats,
            is_text_whole=self.is_text_whole,
            is_ended=self.is_ended,
            num_connections=self.num_connections,
        )
