"""``textmill finetune``: options as a file, as flags, or both."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic.fields import FieldInfo

from textmill.core.settings import Settings
from textmill.finetune.config import SECTIONS, FinetuneConfig, read_config
from textmill.finetune.errors import ConfigError


def _flags() -> dict[str, tuple[str, str, FieldInfo]]:
    """Every option: its flag, its section (``""`` for none), its name and its field."""
    found = {
        name: ("", name, field)
        for name, field in FinetuneConfig.model_fields.items()
        if name not in SECTIONS
    }
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            # Names that two sections share carry the section.
            flag = f"{section}_{name}" if name in found or section == "evaluation" else name
            found[flag] = (section, name, field)
    return found


FLAGS = _flags()
_TOP, _BETWEEN = "top", "__"  # of the names under which click hands the flags over


def _with_flags(command: Callable[..., None]) -> Callable[..., None]:
    for flag, (section, name, field) in reversed(FLAGS.items()):
        help_text = field.description or name.replace("_", " ")
        default = field.get_default(call_default_factory=True)
        if default not in (None, "", ()) and not field.is_required():
            shown = " ".join(default) if isinstance(default, tuple) else default
            help_text += f"  [{shown}]"
        command = click.option(
            f"--{flag.replace('_', '-')}",
            f"{section or _TOP}{_BETWEEN}{name}",
            metavar=_metavar(field),
            multiple=_is_list(field),
            help=help_text,
        )(command)
    return command


def _is_list(field: FieldInfo) -> bool:
    return typing.get_origin(field.annotation) is tuple


def _metavar(field: FieldInfo) -> str:
    kind = field.annotation
    if typing.get_origin(kind) is types.UnionType:
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(typing.get_args(kind))
    return {int: "N", float: "X"}.get(kind, "TEXT")  # type: ignore[arg-type]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option("--dry-run", is_flag=True, help="show examples and an estimate; train nothing")
@click.option(
    "--evaluate",
    "folder",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="measure a finished folder again; train nothing",
)
@_with_flags
def finetune(config: Path | None, *, dry_run: bool, folder: Path | None, **given: Any) -> None:
    """Fine-tune a model on a dataset, measure the gain, and leave a folder to serve.

    CONFIG is a TOML file; each of its options is also a flag, which goes before the file. The same
    command goes on after an interruption. Settings (TEXTMILL_HOME, TEXTMILL_MODELS) are those of
    the other commands.
    """
    settings = Settings.from_environment(os.environ)
    options = read_config(config, _sections(given))

    # Seconds of imports, after what can be refused at once.
    from textmill.finetune.pipeline import execute, open_run  # noqa: PLC0415
    from textmill.finetune.reporting import comparison, describe, estimate, reproduced  # noqa: PLC0415

    run = open_run(options, settings, _say)
    for line in describe(run):
        click.echo(line)
    if folder is not None:
        for line in reproduced(run, folder):
            click.echo(line)
        return
    if dry_run:
        for line in estimate(run):
            click.echo(line)
        return
    output = execute(run)
    if output is not None:
        for line in comparison(output):
            click.echo(line)


def _sections(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    flags: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        section, name = key.split(_BETWEEN)
        if value not in (None, ()):
            flags.setdefault("" if section == _TOP else section, {})[name] = value
    return flags


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a refusal is one sentence and the exit status 2 or 1."""
    from textmill.core.errors import SettingsError, TextmillError  # noqa: PLC0415

    try:
        finetune.main(args=arguments, prog_name="textmill finetune", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(2) from None
    except click.Abort:
        click.echo("textmill: interrupted; the same command goes on from here.", err=True)
        raise SystemExit(130) from None
    except (ConfigError, SettingsError) as error:
        click.echo(f"textmill: {error}", err=True)
        raise SystemExit(2) from None
    except TextmillError as error:
        click.echo(f"textmill: {error}", err=True)
        raise SystemExit(1) from None
    except OSError as error:  # a full disk, most of all
        click.echo(
            f"textmill: {error.filename or 'a file'}: {error.strerror or error}. Mend that, and the"
            " same command goes on.",
            err=True,
        )
        raise SystemExit(1) from None
