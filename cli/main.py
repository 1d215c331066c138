"""The ``textmill`` command: reads the settings once, then runs one of its commands.

Each command imports what it needs itself, so that the others start quickly.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from typing import Any, NoReturn

import click

from textmill.cli.audit import audit
from textmill.cli.exits import EXIT_CONFIGURATION, EXIT_FAILED, CommandFailed
from textmill.cli.generate import generate
from textmill.cli.keys import keys
from textmill.cli.private_state import keep_private
from textmill.cli.register import register
from textmill.cli.terminal import printable
from textmill.core.errors import SettingsError, TextmillError
from textmill.core.settings import Settings
from textmill.core.torch_environment import prepare_for_serving

# New objects after which they are searched for garbage. Imports make 100,000, which stay; with
# Python's own number, 700, searching them is a sixth of a start.
_GC_OBJECTS = 50_000


class _Commands(click.Group):
    """The edge where the product's own errors become a message and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            _fail(ctx, str(error), EXIT_CONFIGURATION)
        except CommandFailed as error:
            _fail(ctx, str(error), error.exit_status)
        except TextmillError as error:
            _fail(ctx, str(error), EXIT_FAILED)


def _fail(ctx: click.Context, message: str, status: int) -> NoReturn:
    click.echo(f"textmill: {printable(message)}", err=True)
    ctx.exit(status)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="textmill")
def textmill() -> None:
    """Serve a small language model: asynchronous jobs, stored texts, decoding strategies.

    Settings are environment variables whose names start with TEXTMILL_.
    """


@textmill.command()
def up() -> None:
    """Run the web process, the workers and a private Redis in the foreground."""
    from textmill.cli.up import run_up

    run_up(_private_settings(), os.environ)


@textmill.command()
def web() -> None:
    """Run only the web process."""
    from textmill.cli.web import serve
    from textmill.core.catalog.live import LiveCatalog

    settings = _private_settings()
    LiveCatalog(settings)  # a bad models file is reported before the imports, which take a second
    serve(settings)


@textmill.command()
def worker() -> None:
    """Run only one worker process."""
    settings = _private_settings()  # a bad setting is reported before PyTorch is imported
    prepare_for_serving()

    from textmill.worker.app import main as run_worker

    gc.freeze()  # what was imported stays, and is not searched again while tokens are generated
    sys.exit(run_worker(settings))


@textmill.command()
def migrate() -> None:
    """Upgrade the database to the current schema; waits while another program locks it."""
    from textmill.cli.migrate import run_migrate

    settings = _private_settings()
    _quiet_logs()
    run_migrate(settings)


@textmill.command(hidden=True)
@click.argument("name")
@click.argument("pid", type=int)
@click.argument("reason")
@click.argument("seconds", type=float)
def recover_worker(name: str, pid: int, reason: str, seconds: float) -> None:
    """Return the jobs of a worker process that has ended to the queue; `up` runs this."""
    from textmill.cli.recover_worker import run_recover_worker

    run_recover_worker(_private_settings(), name, pid, reason, seconds)


@textmill.command()
def doctor() -> None:
    """Check this machine and its settings, and say how to fix problems."""
    from textmill.cli.doctor import Verdict, examine

    _quiet_logs()
    findings = list(examine(_settings()))
    for finding in findings:
        click.echo(printable(finding.line()))
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        sys.exit(EXIT_FAILED)


@textmill.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def finetune(arguments: tuple[str, ...]) -> NoReturn:
    """Fine-tune a model on a dataset, evaluate it, and write a folder that can be served."""
    # Replaces this process, which would only wait.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "textmill.finetune", *arguments])  # noqa: S606 - ourselves


textmill.add_command(generate)
textmill.add_command(register)
textmill.add_command(keys)
textmill.add_command(audit)


def _settings() -> Settings:
    return Settings.from_environment(os.environ)


def _quiet_logs() -> None:
    """Disable the log of a command that prints its own report; it would go to standard output."""
    import structlog

    before = structlog.get_config()
    click.get_current_context().call_on_close(lambda: structlog.configure(**before))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _private_settings() -> Settings:
    """Read the settings and make the state folder private, for commands that write to it."""
    settings = _settings()
    for problem in keep_private(settings.home, settings.sqlite_file):
        click.echo(f"textmill: {problem}", err=True)
    return settings


def main() -> None:
    """Entry point of the installed script."""
    gc.set_threshold(_GC_OBJECTS)
    textmill(prog_name="textmill")
