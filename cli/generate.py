"""``textmill generate``: submits a job over HTTP, prints its text as it is written."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from textmill.cli.addresses import reachable_host, url_of
from textmill.cli.exits import EXIT_FAILED, EXIT_INTERRUPTED, CommandFailed
from textmill.cli.patience import PATIENCE_SECONDS, Patience
from textmill.cli.server_errors import Refused, Unreachable
from textmill.cli.terminal import printable, printable_json
from textmill.core.settings import Settings
from textmill.core.strategies import STRATEGIES
from textmill.core.strategy_specs import ParameterSpec

if TYPE_CHECKING:
    from textmill.cli.client import Client, Document

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
@click.option("--model", help="Name of the model.  [default: the default model]")
@click.option("--strategy", help="One of " + ", ".join(item.name for item in STRATEGIES) + ".")
@_parameter_options
@click.option("--max-new-tokens", type=int, help="Maximum number of tokens to write.")
@click.option("--seed", type=int, help="Random seed; the same seed gives the same text.")
@click.option("--stop", multiple=True, help="Stop the text before this string; may be repeated.")
@click.option("--url", help="Address of the server.  [default: TEXTMILL_HOST and TEXTMILL_PORT]")
@click.option(
    "--retry-for",
    type=click.FloatRange(min=0),
    default=PATIENCE_SECONDS,
    show_default=True,
    help="Seconds to keep trying while the server does not answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the finished job as JSON instead.")
def generate(prompt: str, url: str | None, as_json: bool, retry_for: float, **fields: Any) -> None:
    """Continue PROMPT and print the text as it is written; PROMPT "-" reads standard input.

    On a terminal, control characters are printed as escapes; a pipe or a file gets the text
    unchanged.
    """
    from textmill.cli.client import Client
    from textmill.cli.job_output import JobOutput, follow

    settings = Settings.from_environment(os.environ)
    client = Client(url or _configured_url(settings), api_key=settings.api_key)
    patience = Patience(retry_for, notify=_show_failure)
    request = {name: value for name, value in fields.items() if value not in (None, ())}
    request["prompt"] = sys.stdin.read() if prompt == "-" else prompt
    key = str(uuid.uuid4())  # a submission repeated after a lost answer is stored once
    job = patience.call(lambda: client.submit(request, key))
    output = JobOutput(shows_text=not as_json)
    try:
        job = follow(client, job, output, patience)
    except KeyboardInterrupt:
        _cancel(client, job)
        sys.exit(EXIT_INTERRUPTED)
    output.finish(job)
    if as_json:
        click.echo(printable_json(job))
    if job["status"] != "succeeded":
        raise CommandFailed(_failure(job), EXIT_FAILED)


def _configured_url(settings: Settings) -> str:
    return url_of(reachable_host(settings.host), settings.port)


def _failure(job: Document) -> str:
    error = job.get("error")
    detail = error.get("detail") or error.get("message") if isinstance(error, dict) else error
    reason = detail or job.get("finish_reason") or "no reason was given"
    return f"The job {job['id']} {job['status']}: {reason}"


def _show_failure(sentence: str) -> None:
    """Show why nothing happens, on a terminal only; a script gets the final error alone."""
    if sys.stderr.isatty():
        click.echo(f"textmill: {printable(sentence)}", err=True)


def _cancel(client: Client, job: Document) -> None:
    try:
        client.cancel(str(job["id"]))
    except (Refused, Unreachable) as error:
        click.echo(f"\ntextmill: the job was not cancelled: {printable(str(error))}", err=True)
    else:
        click.echo("\ntextmill: the job was cancelled.", err=True)
