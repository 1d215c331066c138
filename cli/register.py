"""``textmill register``: adds a model's folder to the models that are served.

Finds out whether the folder contains a PEFT adapter or a whole model, and the adapter's base;
``cli.models_file`` writes the models file.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from textmill.cli.exits import CommandFailed
from textmill.cli.terminal import printable
from textmill.core.catalog.models_file import DTYPES, FINETUNE_FILE, Catalog, load_catalog
from textmill.core.catalog.sources import parse_source
from textmill.core.errors import SettingsError, TextmillError
from textmill.core.paths import expand_home
from textmill.core.settings import Settings

if TYPE_CHECKING:
    from textmill.cli.models_file import ModelEntry, Registration

_ADAPTER_FILE = "adapter_config.json"
_MODEL_FILE = "config.json"
_WEIGHTS = ("*.safetensors", "*.bin")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", help="The name in requests.  [default: the name in finetune.json]")
@click.option("--description", help="One line for visitors.  [default: the one in finetune.json]")
@click.option(
    "--default", "makes_default", is_flag=True, help="Use it for requests without a model."
)
@click.option("--source", help="Base of an adapter: a model's name, a folder or a Hub id.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Number format; auto by default.")
def register(
    folder: Path,
    name: str | None,
    description: str | None,
    makes_default: bool,
    source: str | None,
    dtype: str | None,
) -> None:
    """Serve the model in FOLDER, beside the others, without a restart.

    FOLDER is the output of `textmill finetune`, any PEFT adapter, or any folder written by
    save_pretrained. It is not copied or moved. A model of the same name is replaced; options you
    omit keep their current values in the models file.
    """
    from textmill.cli.models_file import ModelEntry, put_model

    settings = Settings.from_environment(os.environ)
    found = look_into(folder)
    catalog = load_catalog(settings)
    chosen = name or found.name
    if chosen is None:
        raise CommandFailed(f"{found.folder} has no {FINETUNE_FILE} with a name; use --name.")
    place = str(found.folder)
    if not found.is_adapter and source is not None:
        raise CommandFailed(f"{found.folder} is a whole model; --source is for adapters.")
    base = base_of(found, source, catalog) if found.is_adapter else None
    entry = ModelEntry(
        name=chosen,
        source=place if base is None else base,
        adapter=None if base is None else place,
        dtype=dtype,
        description=found.description if description is None else " ".join(description.split()),
    )
    done = put_model(settings, entry, makes_default=makes_default)
    click.echo(printable("\n".join(_report(entry, done, settings))))


@dataclass(frozen=True, slots=True)
class FoundModel:
    """The model that a folder contains.

    Attributes:
        folder: an absolute path; links are not resolved.
        is_adapter: whether it needs a base.
        bases: the bases that its files name, the likeliest first.
    """

    folder: Path
    is_adapter: bool
    name: str | None
    bases: tuple[str, ...]
    description: str | None


def look_into(folder: Path) -> FoundModel:
    """Find out which model a folder contains.

    Raises:
        CommandFailed: it contains none.
    """
    folder = Path(os.path.abspath(expand_home(folder)))
    if not folder.is_dir():
        raise CommandFailed(f"There is no folder {folder}.")
    if not str(folder).isprintable():
        raise CommandFailed(f"The path {str(folder)!r} contains unprintable characters; rename it.")
    said = _json(folder / FINETUNE_FILE) if (folder / FINETUNE_FILE).is_file() else {}
    is_adapter = (folder / _ADAPTER_FILE).is_file() and said.get("method") != "full"
    if not is_adapter and not (folder / _MODEL_FILE).is_file():
        raise CommandFailed(
            f"{folder} contains no model: it has neither the {_ADAPTER_FILE} of a PEFT adapter nor"
            f" the {_MODEL_FILE} that save_pretrained writes."
        )
    config = _json(folder / (_ADAPTER_FILE if is_adapter else _MODEL_FILE))
    if not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        raise CommandFailed(f"{folder} contains no weights (.safetensors or .bin); copy it again.")
    bases = (said.get("base"), config.get("base_model_name_or_path") if is_adapter else None)
    return FoundModel(
        folder=folder,
        is_adapter=is_adapter,
        name=_text(said.get("name")),
        bases=tuple(text for text in map(_text, bases) if text is not None),
        description=_text(said.get("description")),
    )


def base_of(found: FoundModel, asked: str | None, catalog: Catalog) -> str:
    """The base of an adapter, in the form of the models file.

    Args:
        found: the adapter.
        asked: ``--source``.
        catalog: the models that can be named.

    Raises:
        CommandFailed: the base does not exist, or none is named.
    """
    if asked is not None:
        return resolve(asked, catalog)
    failure: TextmillError | None = None
    for base in found.bases:
        try:
            return resolve(base, catalog)
        except (CommandFailed, SettingsError) as error:
            failure = failure or error
    if failure is None:
        raise CommandFailed(f"{found.folder} does not name its base; use --source.")
    raise CommandFailed(f"The base of {found.folder} was not found; use --source. {failure}")


def resolve(source: str, catalog: Catalog) -> str:
    """A source in the form of the models file, with an absolute path.

    Raises:
        CommandFailed: there is no such model.
    """
    known = next((spec for spec in catalog if spec.name == source), None)
    if known is not None:
        if known.adapter is not None:
            raise CommandFailed(
                f"The model {source} is itself an adapter on {known.source}; name that instead."
            )
        return known.source
    parsed = parse_source(source)
    if parsed.kind == "package":
        if parsed.package_spec() is None:
            raise CommandFailed(f"{source} names a Python package that is not installed.")
        return source
    path = Path(os.path.abspath(expand_home(source)))
    if (path.is_file() and path.suffix == ".gguf") or (path / _MODEL_FILE).is_file():
        return str(path)
    if path.exists():
        raise CommandFailed(f"{path} contains no model: it has no {_MODEL_FILE}.")
    if not parsed.is_hub_id:
        raise CommandFailed(f"There is no model at {source}.")
    return source


def _report(entry: ModelEntry, done: Registration, settings: Settings) -> list[str]:
    """The lines that say what was done and what happens next."""
    kind = entry.source if entry.adapter is None else f"{entry.adapter} on {entry.source}"
    is_default = done.catalog.default.name == entry.name
    lines = [f"{done.outcome.value}: {entry.name}, {kind}", f"Models file: {done.path}"]
    if is_default:
        lines.append("Requests without a model use it.")
    if settings.serve and entry.name not in settings.serve:
        lines.append("TEXTMILL_SERVE does not contain it here: only workers that name it load it.")
    if parse_source(entry.source).kind == "hub":
        lines.append(f"{entry.source} is not a folder here; a worker downloads it from the Hub.")
    lines.append("A running Textmill serves it within seconds, without a restart.")
    return lines


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CommandFailed(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(document, dict):
        raise CommandFailed(f"{path} does not contain a JSON object.")
    return document


def _text(value: object) -> str | None:
    """The value as one line of text; ``None`` if it is empty or not text."""
    return " ".join(value.split()) or None if isinstance(value, str) else None
