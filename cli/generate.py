"""``textmill generate``: submit a job over HTTP, print its text as it comes, say how it ended."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable
from typing import Any

import click

from textmill.cli.addresses import reachable_host, url_of
from textmill.cli.client import LONG_POLL_SECONDS, Client, Document, Refused, Unreachable
from textmill.cli.exits import EXIT_FAILED, EXIT_INTERRUPTED, CommandFailed
from textmill.cli.patience import PATIENCE_SECONDS, Patience
from textmill.cli.terminal import printable, printable_json
from textmill.core.settings import Settings
from textmill.core.statuses import FINAL_STATUSES
from textmill.core.strategies import STRATEGIES, ParameterSpec

_NUM_RESUMES = 5  # streams in a row that brought nothing, after which the job is polled instead

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
@click.option(
    "--retry-for",
    type=click.FloatRange(min=0),
    default=PATIENCE_SECONDS,
    show_default=True,
    help="Seconds to go on while the server does not answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the finished job as JSON instead.")
def generate(prompt: str, url: str | None, as_json: bool, retry_for: float, **fields: Any) -> None:
    """Continue PROMPT and print the text as it comes; PROMPT "-" reads standard input.

    On a terminal, characters that would command it are printed as escapes; a pipe or a file gets
    the text as it is.
    """
    client = Client(url or _configured_url())
    patience = Patience(retry_for, tell=_tell)
    request = {name: value for name, value in fields.items() if value not in (None, ())}
    request["prompt"] = sys.stdin.read() if prompt == "-" else prompt
    key = str(uuid.uuid4())  # a submission whose answer was lost is repeated, and stored once
    job = patience.call(lambda: client.submit(request, key))
    text = _Output(shows_text=not as_json)
    try:
        job = _follow(client, job, text, patience)
    except KeyboardInterrupt:
        _cancel(client, job)
        sys.exit(EXIT_INTERRUPTED)
    text.finish(job)
    if as_json:
        click.echo(printable_json(job))
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
        self._show = printable if sys.stdout.isatty() else str
        self._shows_progress = sys.stderr.isatty() and not (shows_text and sys.stdout.isatty())

    def add(self, piece: str) -> None:
        """Take text that was appended to the job's."""
        self._received += piece
        self._print(self._received)

    def show(self, text: str) -> None:
        """Take all of the job's text so far."""
        self._received = text
        self._print(text)

    def restart(self) -> None:
        """A new attempt begins; the same seed writes the same text again."""
        self._received = ""

    def report(self, line: str) -> None:
        """Show progress on a terminal that does not show the text itself."""
        if self._shows_progress:
            click.echo(f"\r\x1b[K{printable(line)}", nl=False, err=True)

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
                click.echo(self._show(text[len(self._printed) :]), nl=False)
                sys.stdout.flush()
            self._printed = text


def _follow(client: Client, job: Document, output: _Output, patience: Patience) -> Document:
    """Read the job to its end, whatever happens to the connection meanwhile.

    A stream that breaks is resumed after its last event; where streams bring nothing, the job is
    polled between two of them.
    """
    job_id, after, num_fruitless = str(job["id"]), "", 0
    while job["status"] not in FINAL_STATUSES:
        num_fruitless += 1
        failure: Unreachable | Refused | None = None
        try:
            for event in client.follow(job_id, after):
                patience.renew()
                after, num_fruitless = event.id or after, 0
                job = _take(event.kind, event.data, job, output)
                if event.kind == "done":
                    break
        except (Unreachable, Refused) as error:
            failure = error
        if job["status"] in FINAL_STATUSES or not num_fruitless:
            continue
        if isinstance(failure, Refused) or num_fruitless >= _NUM_RESUMES:
            job = patience.call(lambda: client.read(job_id, LONG_POLL_SECONDS))
            output.show(str(job.get("text") or ""))
            output.report(_progress(job))
            after = str(job.get("cursor") or after)
        elif failure is not None:
            patience.pause(failure)
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


def _tell(sentence: str) -> None:
    """Say to a person at a terminal why nothing happens; a script hears only of the end."""
    if sys.stderr.isatty():
        click.echo(f"textmill: {printable(sentence)}", err=True)


def _cancel(client: Client, job: Document) -> None:
    try:
        client.cancel(str(job["id"]))
    except (Refused, Unreachable) as error:
        click.echo(f"\ntextmill: the job was not cancelled: {printable(str(error))}", err=True)
    else:
        click.echo("\ntextmill: the job was cancelled.", err=True)
