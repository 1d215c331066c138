"""``textmill generate``: submit a job over HTTP, print its text as it comes, say how it ended."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from cli.addresses import reachable_host, url_of
from cli.client import LONG_POLL_SECONDS, Client, Document, Refused, Unreachable
from cli.exits import EXIT_FAILED, EXIT_INTERRUPTED, CommandFailed
from core.settings import Settings
from core.strategies import STRATEGIES, ParameterSpec

_FINAL = frozenset({"succeeded", "failed", "canceled"})
_NUM_RESUMES = 5  # broken streams in a row after which the job is polled instead

Command = Callable[..., None]


def _parameter_options(command: Command) -> Command:
    """Give the command one option for each parameter that any strategy takes."""
    parameters: dict[str, ParameterSpec] = {}
    for strategy in STRATEGIES:
        for parameter in strategy.parameters:
            parameters.setdefault(parameter.name, parameter)
    for parameter in reversed(parameters.values()):
        kind: type[int] | type[float] = int if parameter.type == "integer" else float
        name = f"--{parameter.name.replace('_', '-')}"
        command = click.option(name, type=kind, help=parameter.description)(command)
    return command


@click.command()
@click.argument("prompt")
@click.option("--model", help="Name of the model; the default model when left out.")
@click.option("--strategy", help="One of " + ", ".join(item.name for item in STRATEGIES) + ".")
@_parameter_options
@click.option("--max-new-tokens", type=int, help="At most this many tokens are written.")
@click.option("--seed", type=int, help="The same seed gives the same text.")
@click.option("--stop", multiple=True, help="Ends the text where it occurs; may be repeated.")
@click.option("--url", help="Address of the server; the settings' host and port when left out.")
@click.option("--json", "as_json", is_flag=True, help="Print the finished job as JSON instead.")
def generate(prompt: str, url: str | None, as_json: bool, **fields: Any) -> None:
    """Continue PROMPT and print the text as it comes; PROMPT "-" reads standard input."""
    client = Client(url or _configured_url())
    request = {name: value for name, value in fields.items() if value not in (None, ())}
    request["prompt"] = sys.stdin.read() if prompt == "-" else prompt
    job = client.submit(request)
    text = _Output(shows_text=not as_json)
    try:
        job = _follow(client, job, text)
    except KeyboardInterrupt:
        _cancel(client, job)
        sys.exit(EXIT_INTERRUPTED)
    text.finish(job)
    if as_json:
        click.echo(json.dumps(job, indent=2, ensure_ascii=False))
    if job["status"] != "succeeded":
        raise CommandFailed(_failure(job), EXIT_FAILED)


def _configured_url() -> str:
    settings = Settings.from_environment(os.environ)
    return url_of(reachable_host(settings.host), settings.port)


class _Output:
    """Prints each character of the text once, however often the stream starts over."""

    def __init__(self, *, shows_text: bool) -> None:
        self._shows_text = shows_text
        self._printed = ""
        self._received = ""
        self._shows_progress = sys.stderr.isatty() and not (shows_text and sys.stdout.isatty())

    def add(self, piece: str) -> None:
        """Take text that was appended to the job's."""
        self._received += piece
        self._print(self._received)

    def restart(self) -> None:
        """A new attempt begins; the same seed writes the same text again."""
        self._received = ""

    def report(self, line: str) -> None:
        """Show progress on a terminal that does not show the text itself."""
        if self._shows_progress:
            click.echo(f"\r\x1b[K{line}", nl=False, err=True)

    def finish(self, job: Document) -> None:
        """Print what is still missing of the final text."""
        self.report("")
        text = str(job.get("text") or "")
        if not text.startswith(self._printed):
            if self._shows_text:
                click.echo("\n(the text was written anew)", err=True)
            self._printed = ""
        self._print(text)
        if self._shows_text:
            click.echo()

    def _print(self, text: str) -> None:
        if len(text) > len(self._printed) and text.startswith(self._printed):
            if self._shows_text:
                click.echo(text[len(self._printed) :], nl=False)
                sys.stdout.flush()
            self._printed = text


def _follow(client: Client, job: Document, output: _Output) -> Document:
    """Read the stream to the job's end, resuming where it broke; poll when that fails too."""
    after, num_broken = "", 0
    while job["status"] not in _FINAL and num_broken < _NUM_RESUMES:
        num_broken += 1
        try:
            for event in client.follow(str(job["id"]), after):
                after, num_broken = event.id or after, 0
                job = _take(event.kind, event.data, job, output)
                if event.kind == "done":
                    break
        except Unreachable:
            continue
        except Refused:
            break
    while job["status"] not in _FINAL:
        job = client.read(str(job["id"]), LONG_POLL_SECONDS)
        output.report(_progress(job))
    return job


def _take(kind: str, data: Any, job: Document, output: _Output) -> Document:
    if kind == "token" and isinstance(data, dict):
        output.add(str(data.get("text", "")))
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


def _failure(job: Document) -> str:
    error = job.get("error")
    detail = error.get("detail") or error.get("message") if isinstance(error, dict) else error
    reason = detail or job.get("finish_reason") or "no reason was given"
    return f"The job {job['id']} {job['status']}: {reason}"


def _cancel(client: Client, job: Document) -> None:
    try:
        client.cancel(str(job["id"]))
    except (Refused, Unreachable) as error:
        click.echo(f"\ntextmill: the job was not cancelled: {error}", err=True)
    else:
        click.echo("\ntextmill: the job was cancelled.", err=True)
