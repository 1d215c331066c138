"""The ``textmill`` command: reads the settings once, then runs one of its commands.

Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

from cli.exits import EXIT_CONFIGURATION, EXIT_FAILED, CommandFailed
from cli.generate import generate
from cli.register import register
from core.errors import SettingsError, TextmillError
from core.settings import Settings


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
    click.echo(f"textmill: {message}", err=True)
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
    from cli.up import run_up

    run_up(_settings(), os.environ)


@textmill.command()
def web() -> None:
    """Run the web process alone."""
    from cli.web import serve
    from core.model_catalog import load_catalog

    settings = _settings()
    load_catalog(settings)  # refused before the imports, which take a second
    serve(settings)


@textmill.command()
def worker() -> None:
    """Run one worker process alone."""
    settings = _settings()  # before the imports: a bad setting need not wait for PyTorch
    # PyTorch's idle threads must not spin on the cores that the kernels' threads compute on.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    from worker.app import main as run_worker

    sys.exit(run_worker(settings))


@textmill.command()
def migrate() -> None:
    """Bring the database to the newest schema."""
    from sqlalchemy.exc import SQLAlchemyError

    from core.db import make_engine
    from core.errors import StorageUnavailable
    from core.workers import forget_dead, worker_host
    from migrations.upgrade import upgrade

    settings = _settings()
    try:
        upgrade(settings.database_url)
        engine = make_engine(settings.database_url, pool_size=1)
        forget_dead(engine, worker_host())
        engine.dispose()
    except (SQLAlchemyError, StorageUnavailable) as error:
        cause = error.__cause__ if isinstance(error, StorageUnavailable) else error
        reason = " ".join(str(getattr(cause, "orig", None) or cause or error).split())
        raise CommandFailed(
            f"The database cannot be migrated; look at TEXTMILL_DATABASE_URL. {reason}"
        ) from None


@textmill.command()
def doctor() -> None:
    """Check this machine and its settings, and say how to mend what is wrong."""
    from cli.doctor import Verdict, examine

    findings = list(examine(_settings()))
    for finding in findings:
        click.echo(finding.line())
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
    os.execv(sys.executable, [sys.executable, "-P", "-m", "finetune", *arguments])  # noqa: S606 - ourselves


textmill.add_command(generate)
textmill.add_command(register)


def _settings() -> Settings:
    return Settings.from_environment(os.environ)


def main() -> None:
    """Entry point of the installed script."""
    textmill(prog_name="textmill")
