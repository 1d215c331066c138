"""The ``textmill finetune`` command line: options from a TOML file, from flags, or from both."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic.fields import FieldInfo

from textmill.core.settings import Settings
from textmill.finetune.config import SECTIONS, FinetuneConfig, read_config
from textmill.finetune.errors import ConfigError


def _flags() -> dict[str, tuple[str, str, FieldInfo]]:
    """Flag name → (section, option, field); the section is ``""`` for options outside sections."""
    found = {
        name: ("", name, field)
        for name, field in FinetuneConfig.model_fields.items()
        if name not in SECTIONS
    }
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            # Options whose names occur in two sections get the section as a prefix.
            flag = f"{section}_{name}" if name in found or section == "evaluation" else name
            found[flag] = (section, name, field)
    return found


FLAGS = _flags()
_TOP, _BETWEEN = "top", "__"  # parts of the parameter names that click passes


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
@click.option("--dry-run", is_flag=True, help="show examples and an estimate without training")
@click.option(
    "--evaluate",
    "folder",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="measure a finished folder again without training",
)
@_with_flags
def finetune(config: Path | None, *, dry_run: bool, folder: Path | None, **given: Any) -> None:
    """Fine-tune a model on a dataset, measure the gain, and write a folder to serve.

    CONFIG is a TOML file. Each of its options is also a flag; a flag overrides the file. After an
    interruption, the same command resumes. The settings (TEXTMILL_HOME, TEXTMILL_MODELS) are those
    of the other commands.
    """
    settings = Settings.from_environment(os.environ)
    options = read_config(config, _sections(given))

    # These imports take seconds, so options are checked before them.
    from textmill.finetune.estimate import estimate  # noqa: PLC0415
    from textmill.finetune.pipeline import execute  # noqa: PLC0415
    from textmill.finetune.reporting import describe, summarise  # noqa: PLC0415
    from textmill.finetune.reproduction import check_reproduction  # noqa: PLC0415
    from textmill.finetune.run import open_run  # noqa: PLC0415

    run = open_run(options, settings, _report)
    _print(describe(run))
    if folder is not None:
        _print(check_reproduction(run, folder))
    elif dry_run:
        _print(estimate(run))
    elif (output := execute(run)) is not None:
        _print(summarise(output))


def _sections(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    flags: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        section, name = key.split(_BETWEEN)
        if value not in (None, ()):
            flags.setdefault("" if section == _TOP else section, {})[name] = value
    return flags


def _report(sentence: str) -> None:
    click.echo(sentence, err=True)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; errors become one sentence and exit status 1, 2 or 130."""
    from textmill.core.errors import SettingsError, TextmillError  # noqa: PLC0415

    try:
        finetune.main(args=arguments, prog_name="textmill finetune", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(2) from None
    except click.Abort:
        click.echo("textmill: interrupted; run the same command to resume.", err=True)
        raise SystemExit(130) from None
    except (ConfigError, SettingsError) as error:
        click.echo(f"textmill: {error}", err=True)
        raise SystemExit(2) from None
    except TextmillError as error:
        click.echo(f"textmill: {error}", err=True)
        raise SystemExit(1) from None
    except OSError as error:  # most often a full disk
        click.echo(
            f"textmill: {error.filename or 'a file'}: {error.strerror or error}. Fix that and run"
            " the same command to resume.",
            err=True,
        )
        raise SystemExit(1) from None
