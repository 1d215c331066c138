"""``textmill register``: a model's folder becomes a model that is served.

Looks at what the folder is (a PEFT adapter, or a whole model) and what it stands on; writing the
models file is ``cli.models_file``.
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
from textmill.core.settings import Settings

if TYPE_CHECKING:
    from textmill.cli.models_file import ModelEntry, Registration

_ADAPTER_FILE = "adapter_config.json"
_MODEL_FILE = "config.json"
_WEIGHTS = ("*.safetensors", "*.bin")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", help="What requests call it; by itself what finetune.json says.")
@click.option("--description", help="One line for visitors; by itself what finetune.json says.")
@click.option("--default", "makes_default", is_flag=True, help="Requests without a model get it.")
@click.option("--source", help="What an adapter stands on: a model's name, a folder, a Hub id.")
@click.option("--dtype", type=click.Choice(DTYPES), help="What it is computed in; auto by itself.")
def register(
    folder: Path,
    name: str | None,
    description: str | None,
    makes_default: bool,
    source: str | None,
    dtype: str | None,
) -> None:
    """Serve the model in FOLDER, beside the others, without a restart.

    FOLDER is what `textmill finetune` leaves, any PEFT adapter, or any folder that save_pretrained
    wrote. It stays where it is. A model of the same name is replaced; of its entry in the models
    file what is not said anew stays.
    """
    from textmill.cli.models_file import ModelEntry, put_model

    settings = Settings.from_environment(os.environ)
    found = look_into(folder)
    catalog = load_catalog(settings)
    chosen = name or found.name
    if chosen is None:
        raise CommandFailed(f"{found.folder} has no {FINETUNE_FILE} that names it: say --name.")
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
    """What a folder holds.

    Attributes:
        folder: absolute; a link in it stays one.
        is_adapter: whether it needs a base.
        bases: what it may stand on, in its own words; the likeliest first.
    """

    folder: Path
    is_adapter: bool
    name: str | None
    bases: tuple[str, ...]
    description: str | None


def look_into(folder: Path) -> FoundModel:
    """See what a folder is.

    Raises:
        CommandFailed: it holds no model.
    """
    folder = Path(os.path.abspath(folder.expanduser()))
    if not folder.is_dir():
        raise CommandFailed(f"There is no folder {folder}.")
    if not str(folder).isprintable():
        raise CommandFailed(f"The path {str(folder)!r} cannot be written into a file; rename it.")
    said = _json(folder / FINETUNE_FILE) if (folder / FINETUNE_FILE).is_file() else {}
    is_adapter = (folder / _ADAPTER_FILE).is_file() and said.get("method") != "full"
    if not is_adapter and not (folder / _MODEL_FILE).is_file():
        raise CommandFailed(
            f"{folder} holds no model: it has neither {_ADAPTER_FILE}, as a PEFT adapter has, nor"
            f" {_MODEL_FILE}, as save_pretrained writes it."
        )
    config = _json(folder / (_ADAPTER_FILE if is_adapter else _MODEL_FILE))
    if not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        raise CommandFailed(f"{folder} holds no weights (.safetensors or .bin); copy it again.")
    bases = (said.get("base"), config.get("base_model_name_or_path") if is_adapter else None)
    return FoundModel(
        folder=folder,
        is_adapter=is_adapter,
        name=_text(said.get("name")),
        bases=tuple(text for text in map(_text, bases) if text is not None),
        description=_text(said.get("description")),
    )


def base_of(found: FoundModel, asked: str | None, catalog: Catalog) -> str:
    """What an adapter stands on, as the models file has it.

    Args:
        found: the adapter.
        asked: ``--source``.
        catalog: the models that are known by name.

    Raises:
        CommandFailed: there is nothing of that name, or none is named.
    """
    if asked is not None:
        return resolve(asked, catalog)
    failure = None
    for base in found.bases:
        try:
            return resolve(base, catalog)
        except CommandFailed as error:
            failure = failure or error
    if failure is None:
        raise CommandFailed(f"{found.folder} does not say what it stands on: say --source.")
    raise CommandFailed(f"What {found.folder} stands on is not here; say --source. {failure}")


def resolve(source: str, catalog: Catalog) -> str:
    """A source as the models file takes it; paths become absolute.

    Raises:
        CommandFailed: it cannot be one.
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
    path = Path(os.path.abspath(Path(source).expanduser()))
    if (path.is_file() and path.suffix == ".gguf") or (path / _MODEL_FILE).is_file():
        return str(path)
    if path.exists():
        raise CommandFailed(f"{path} holds no model: it has no {_MODEL_FILE}.")
    if not parsed.is_hub_id:
        raise CommandFailed(f"There is no model at {source}.")
    return source


def _report(entry: ModelEntry, done: Registration, settings: Settings) -> list[str]:
    """What was done, and what happens next."""
    kind = entry.source if entry.adapter is None else f"{entry.adapter} on {entry.source}"
    is_default = done.catalog.default.name == entry.name
    lines = [f"{done.outcome.value}: {entry.name}, {kind}", f"Models file: {done.path}"]
    if is_default:
        lines.append("Requests that name no model get it.")
    if settings.serve and entry.name not in settings.serve:
        lines.append("TEXTMILL_SERVE leaves it out here: only workers that name it load it.")
    if parse_source(entry.source).kind == "hub":
        lines.append(f"{entry.source} is no folder here: a worker fetches it from the model Hub.")
    lines.append("A running Textmill takes it up within seconds; nothing has to be restarted.")
    return lines


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CommandFailed(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(document, dict):
        raise CommandFailed(f"{path} holds no JSON object.")
    return document


def _text(value: object) -> str | None:
    """Text that says something; whatever else is there says nothing."""
    return " ".join(value.split()) or None if isinstance(value, str) else None
