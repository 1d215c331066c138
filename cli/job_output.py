"""Follows one job to its end and prints its text as it is written.

Survives broken streams and restarts of the server; ``cli.patience`` says for how long.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from textmill.cli.client import LONG_POLL_SECONDS, Client, Document
from textmill.cli.patience import Patience
from textmill.cli.server_errors import Refused, Unreachable
from textmill.cli.terminal import printable
from textmill.core.statuses import FINAL_STATUSES

_NUM_RESUMES = 5  # streams in a row without an event, after which the job is polled instead


class JobOutput:
    """Prints each character of the text once, even if the stream starts over.

    Args:
        shows_text: whether to print the text; progress alone is shown otherwise.
    """

    def __init__(self, *, shows_text: bool) -> None:
        self._shows_text = shows_text
        self._printed = ""
        self._received = ""
        self._show = printable if sys.stdout.isatty() else str
        self._shows_progress = sys.stderr.isatty() and not (shows_text and sys.stdout.isatty())

    def append(self, piece: str) -> None:
        """Add text to the end of the job's text."""
        self._received += piece
        self._print(self._received)

    def replace(self, text: str) -> None:
        """Set the job's whole text so far."""
        self._received = text
        self._print(text)

    def restart(self) -> None:
        """Begin a new attempt, which writes the same text again from the same seed."""
        self._received = ""

    def report(self, line: str) -> None:
        """Show progress on a terminal that does not show the text itself."""
        if self._shows_progress:
            click.echo(f"\r\x1b[K{printable(line)}", nl=False, err=True)

    def finish(self, job: Document) -> None:
        """Print the rest of the final text."""
        self.report("")
        text = str(job.get("text") or "")
        if not text.startswith(self._printed):
            if self._shows_text:
                click.echo("\n(the text was written again from the beginning)", err=True)
            self._printed = ""
        self._print(text)
        if self._shows_text:
            click.echo()

    def _print(self, text: str) -> None:
        if len(text) > len(self._printed) and text.startswith(self._printed):
            if self._shows_text:
                click.echo(self._show(text[len(self._printed) :]), nl=False)
                sys.stdout.flush()
            self._printed = text


def follow(client: Client, job: Document, output: JobOutput, patience: Patience) -> Document:
    """Read a job until it ends.

    A stream that breaks is resumed after its last event. After several streams without an event
    the job is polled once between two streams.

    Returns:
        The final job.

    Raises:
        Unreachable, Refused: the server did not answer for as long as ``patience`` allows.
    """
    job_id, after, num_fruitless = str(job["id"]), "", 0
    while job["status"] not in FINAL_STATUSES:
        num_fruitless += 1
        failure: Unreachable | Refused | None = None
        try:
            for event in client.follow(job_id, after):
                patience.renew()
                after, num_fruitless = event.id or after, 0
                job = _apply(event.kind, event.data, job, output)
                if event.kind == "done":
                    break
        except (Unreachable, Refused) as error:
            failure = error
        if job["status"] in FINAL_STATUSES or not num_fruitless:
            continue
        if isinstance(failure, Refused) or num_fruitless >= _NUM_RESUMES:
            job = patience.call(lambda: client.read(job_id, LONG_POLL_SECONDS))
            output.replace(str(job.get("text") or ""))
            output.report(_progress(job))
            after = str(job.get("cursor") or after)
        elif failure is not None:
            patience.pause(failure)
    return job


def _apply(kind: str, data: Any, job: Document, output: JobOutput) -> Document:
    """Show one event; returns the job as it is after the event."""
    if kind == "token" and isinstance(data, dict):
        output.append(str(data.get("text", "")))
    elif kind == "reset":
        output.restart()
    elif kind in {"status", "done"} and isinstance(data, dict) and "status" in data:
        job = data
        output.report(_progress(job))
    return job


def _progress(job: Document) -> str:
    queue = job.get("queue") or {}
    if job["status"] == "queued" and queue.get("position"):
        return f"queued, number {queue['position']}"
    num_tokens = (job.get("usage") or {}).get("completion_tokens")
    return f"{job['status']}, {num_tokens} tokens" if num_tokens else str(job["status"])
