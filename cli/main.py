"""The ``textmill`` command: reads the settings once, then runs one of its commands.

Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, NoReturn

import click

from textmill.cli.exits import EXIT_CONFIGURATION, EXIT_FAILED, CommandFailed
from textmill.cli.generate import generate
from textmill.cli.private_state import keep_private
from textmill.cli.register import register
from textmill.cli.terminal import printable
from textmill.core.errors import SettingsError, TextmillError
from textmill.core.settings import Settings


class _Commands(click.Group):
    """The edge where errors made on purpose become a sentence and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            _refuse(ctx, str(error), EXIT_CONFIGURATION)
        except CommandFailed as error:
            _refuse(ctx, str(error), error.exit_status)
        except TextmillError as error:
            _refuse(ctx, str(error), EXIT_FAILED)


def _refuse(ctx: click.Context, message: str, status: int) -> NoReturn:
    click.echo(f"textmill: {printable(message)}", err=True)
    ctx.exit(status)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="textmill")
def textmill() -> None:
    """Serve a small language model: asynchronous jobs, stored texts, decoding strategies.

    Settings come from the environment; their names start with TEXTMILL_.
    """


@textmill.command()
def up() -> None:
    """Run web, workers and a private Redis in the foreground."""
    from textmill.cli.up import run_up

    run_up(_private_settings(), os.environ)


@textmill.command()
def web() -> None:
    """Run the web process alone."""
    from textmill.cli.web import serve
    from textmill.core.catalog.live import LiveCatalog

    settings = _private_settings()
    LiveCatalog(settings)  # refused before the imports, which take a second
    serve(settings)


@textmill.command()
def worker() -> None:
    """Run one worker process alone."""
    settings = _private_settings()  # before the imports: a bad setting need not wait for PyTorch
    # PyTorch's idle threads must not spin on the cores that the kernels' threads compute on.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # On Intel's processors PyTorch's products would add in another order for other numbers of rows.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

    from textmill.worker.app import main as run_worker

    sys.exit(run_worker(settings))


@textmill.command()
def migrate() -> None:
    """Bring the database to the newest schema; waits while another program locks it."""
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
    """Check this machine and its settings, and say how to mend what is wrong."""
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
    """Fine-tune a model on a dataset, measure the gain, and leave a folder to serve."""
    # In place of this process, which would only wait.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "textmill.finetune", *arguments])  # noqa: S606 - ourselves


textmill.add_command(generate)
textmill.add_command(register)


def _settings() -> Settings:
    return Settings.from_environment(os.environ)


def _quiet_logs() -> None:
    """For commands that say themselves what they meet; an unconfigured log is standard output."""
    import structlog

    before = structlog.get_config()
    click.get_current_context().call_on_close(lambda: structlog.configure(**before))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _private_settings() -> Settings:
    """The settings of a command that writes into the state folder; it is private from then on."""
    settings = _settings()
    for problem in keep_private(settings.home, settings.sqlite_file):
        click.echo(f"textmill: {problem}", err=True)
    return settings


def main() -> None:
    """Entry point of the installed script."""
    textmill(prog_name="textmill")
