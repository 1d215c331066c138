"""The documents of ``/v1/responses``: whole ones, and the events of a stream.

The number of an event follows from its place in the text: an event that ends the text's character
*n* has the number *n* + 3. A client that has events up to a number can therefore go on after it, at
any web process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from textmill.core.jobs.records import JobRecord

PREFIX = "resp_"
_NUM_HEAD = 4  # events before the text, with the numbers 0 to 3
_STATUSES = {
    "queued": "queued",
    "running": "in_progress",
    "succeeded": "completed",
    "failed": "failed",
    "canceled": "cancelled",
}


def response_document(job: JobRecord, *, is_canceling: bool = False) -> dict[str, Any]:
    """A job as a response."""
    status = _STATUSES[job.status]
    if job.status == "succeeded" and job.finish_reason == "length":
        status = "incomplete"
    if is_canceling and not job.is_final:
        status = "cancelled"
    error = None
    if job.error_code is not None:
        error = {"code": "server_error", "message": f"{job.error_message} ({job.error_code})"}
    reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
    num_prompt, num_new = job.num_prompt_tokens or 0, job.num_completion_tokens
    return {
        "id": PREFIX + job.id,
        "object": "response",
        "created_at": job.created_at // 1000,
        "completed_at": None if job.finished_at is None else job.finished_at // 1000,
        "status": status,
        "background": True,
        "error": error,
        "incomplete_details": reason,
        "instructions": None,
        "max_output_tokens": job.parameters.get("max_new_tokens"),
        "metadata": {},
        "model": job.model,
        "output": [_item(job)] if job.is_final and job.status != "failed" else [],
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": job.parameters.get("temperature", 0.0),
        "text": {"format": {"type": "text"}},
        "tool_choice": "none",
        "tools": [],
        "top_p": job.parameters.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": {
            "input_tokens": num_prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": num_new,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_prompt + num_new,
        }
        if job.is_final
        else None,
        "user": None,
    }


def _item(job: JobRecord, text: str | None = None) -> dict[str, Any]:
    is_open = text is not None
    return {
        "type": "message",
        "id": _item_id(job),
        "status": "in_progress" if is_open else "completed",
        "role": "assistant",
        "content": [] if is_open else [_part(job.text)],
    }


def _item_id(job: JobRecord) -> str:
    return f"msg_{job.id}"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class ResponseWriter:
    """Writes the events of one response.

    Args:
        starting_after: the number of the last event that the client has; −1 for none.
    """

    def __init__(self, starting_after: int = -1) -> None:
        self._after = starting_after

    @property
    def num_known(self) -> int:
        """The characters of the text that the client has."""
        return max(0, self._after - _NUM_HEAD + 1)

    @property
    def holds_text_back(self) -> bool:
        """Never: the text comes in pieces."""
        return False

    def whole(self, jobs: Sequence[JobRecord]) -> dict[str, Any]:
        """The document of the response."""
        return response_document(jobs[0])

    def begin(self, job: JobRecord) -> list[dict[str, Any]]:
        """The events before the text."""
        created = response_document(job) | {"status": "in_progress", "output": [], "usage": None}
        place = {"output_index": 0}
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": created},
            {"type": "response.in_progress", "response": created},
            {"type": "response.output_item.added", "item": _item(job, "")} | place,
            {"type": "response.content_part.added", "part": _part("")} | self._place(job),
        ]
        return [
            event | {"sequence_number": number}
            for number, event in enumerate(events)
            if number > self._after
        ]

    def text(self, job: JobRecord, text: str, end: int) -> dict[str, Any]:
        """A piece of text."""
        delta = {"type": "response.output_text.delta", "delta": text, "logprobs": []}
        return delta | self._place(job) | {"sequence_number": end + _NUM_HEAD - 1}

    def end(self, job: JobRecord, rest: str) -> list[dict[str, Any]]:
        """The rest of the text, and the events after it."""
        document = response_document(job)
        kind = {"cancelled": "incomplete"}.get(document["status"], document["status"])
        first = len(job.text) + _NUM_HEAD
        place = self._place(job)
        events: list[dict[str, Any]] = [
            {"type": "response.output_text.done", "text": job.text, "logprobs": []} | place,
            {"type": "response.content_part.done", "part": _part(job.text)} | place,
            {"type": "response.output_item.done", "item": _item(job), "output_index": 0},
            {"type": f"response.{kind}", "response": document},
        ]
        last = [
            event | {"sequence_number": first + number}
            for number, event in enumerate(events)
            if first + number > self._after
        ]
        return [*([self.text(job, rest, len(job.text))] if rest else []), *last]

    def close(self, jobs: list[JobRecord]) -> list[dict[str, Any]]:
        """Nothing: the last event of the response has ended it."""
        return []

    def fail(self, job: JobRecord, error: dict[str, Any]) -> list[dict[str, Any]]:
        """The failure of the job."""
        document = response_document(job) | {"status": "failed"}
        document["error"] = document["error"] or {"code": "server_error", **_message(error)}
        number = len(job.text) + _NUM_HEAD
        return [{"type": "response.failed", "response": document, "sequence_number": number}]

    def event(self, chunk: Mapping[str, Any]) -> str:
        """A named event, in ASCII."""
        return f"event: {chunk['type']}\ndata: {json.dumps(chunk)}\n\n"

    @property
    def last_line(self) -> str:
        """Nothing."""
        return ""

    def _place(self, job: JobRecord) -> dict[str, Any]:
        return {"item_id": _item_id(job), "output_index": 0, "content_index": 0}


def _message(error: Mapping[str, Any]) -> dict[str, str]:
    return {"message": str(error["message"])}
